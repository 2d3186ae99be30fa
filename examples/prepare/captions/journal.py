"""Journal of raw answers: a file of JSON lines that only grows, written before an answer is used.

Interpretations of answers are not stored, so that changed rules for sentences need no new questions.
"""

import json
import os
import sys
import threading
import warnings
from collections import Counter, defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from examples.prepare.captions.questions import Question, Reply
from stmi_layers.training.files import cannot_write

if sys.platform != "win32":
    import fcntl


class Journal:
    """Answers by question, in the order in which they came. Threads may share it; processes may not.

    A process that is killed while writing leaves half a line, which is removed; its question counts as not asked.

    Args:
        path: file of the journal, created if missing.

    Attributes:
        spent: numbers of answers, tokens, and answers without token counts, over the whole file.
        failures: number of attempts without an answer, by kind, over the whole file.

    Raises:
        BlockingIOError: when another process has the file open.
        ValueError: when a line is not an entry of a journal; the message names file and line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._replies: dict[str, list[Reply]] = defaultdict(list)
        self.spent: Counter[str] = Counter()
        self.failures: Counter[str] = Counter()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            self._claim()
            self._read()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def replies(self, key: str) -> list[Reply]:
        """Return the answers to a question so far, at most two."""
        with self._lock:
            return list(self._replies.get(key, ()))

    def add(self, question: Question, reply: Reply) -> None:
        """Keep an answer; it is on disk when this method returns."""
        with self._lock:
            self._write(question, reply._asdict())
            self._keep(question.key, reply)

    def add_failure(self, question: Question, failures: dict[str, int]) -> None:
        """Keep the failed attempts at a question; the question stays open."""
        with self._lock:
            self._write(question, {"failures": failures})
            self.failures.update(failures)

    def forget(self, key: str) -> None:
        """Mark a question to be asked again; its earlier answers stay in the file."""
        with self._lock:
            self._write_line({"question": key, "again": True})
            self._replies.pop(key, None)

    def _write(self, question: Question, content: dict[str, Any]) -> None:
        head = {"item": question.item, "view": question.view, "question": question.key}
        self._write_line({**head, "time": datetime.now(UTC).isoformat(timespec="seconds"), **content})

    def _write_line(self, record: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _claim(self) -> None:
        if sys.platform != "win32":
            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BlockingIOError(f"{self.path} is in use: another process asks the same questions") from error

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        complete = content[: content.rfind(b"\n") + 1]
        if len(complete) < len(content):
            warnings.warn(f"{self.path}: the last line is incomplete and is removed, to be asked again", stacklevel=3)
            self._file.truncate(len(complete))
        for number, line in enumerate(complete.splitlines(), start=1):
            try:
                self._take(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"{self.path}:{number} is not an answer; remove that line ({error!r})") from error

    def _take(self, record: dict[str, Any]) -> None:
        if record.get("again"):
            self._replies.pop(record["question"], None)
        elif "text" in record:
            self._keep(record["question"], Reply(**{name: record[name] for name in Reply._fields}))
        else:
            self.failures.update(record["failures"])

    def _keep(self, key: str, reply: Reply) -> None:
        self._replies[key].append(reply)
        self.failures.update(reply.failures)
        self.spent["answers"] += 1
        self.spent["prompt tokens"] += reply.prompt_tokens or 0
        self.spent["completion tokens"] += reply.completion_tokens or 0
        self.spent["answers without token counts"] += None in (reply.prompt_tokens, reply.completion_tokens)
