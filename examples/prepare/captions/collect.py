"""All questions of a split, asked in parallel until each is answered, and the outcome of the answers."""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Literal, NamedTuple

from examples.prepare.captions.answers import Reading, parse_answer
from examples.prepare.captions.endpoint import UnansweredError, UnusableError
from examples.prepare.captions.journal import Journal
from examples.prepare.captions.questions import Question, Reply, Request, compose, write_correction
from examples.prepare.captions.schema import Schema

Status = Literal["complete", "partial", "invalid", "refused", "open"]
MAX_FAILURES = 10  # unanswered questions in a row after which the server counts as down


class Outcome(NamedTuple):
    """Result of the answers to a question.

    Attributes:
        status: "complete"; "partial": wrong even after the repair, but some entries are valid; "invalid": no entry is
            valid; "refused"; "open": not asked yet, or the repair is not asked for yet.
        readings: valid readings by attribute.
        problems: errors of the last answer, or the reason of the refusal.
        repaired: whether the first answer was wrong.
        withheld: values left out as possible number plates.
    """

    status: Status
    readings: dict[str, Reading]
    problems: list[str]
    repaired: bool = False
    withheld: int = 0


def judge(replies: list[Reply], schema: Schema, *, number_plates: bool = False) -> Outcome:
    """Return the outcome of a question from its answers, at most two."""
    if not replies:
        return Outcome("open", {}, [])
    last, repaired = replies[-1], len(replies) > 1
    if last.declined:
        return Outcome("refused", {}, [last.refusal or last.text or "content filter"], repaired)
    readings, problems, withheld = parse_answer(last.text, schema, number_plates=number_plates)
    status: Status = "complete"
    if problems:
        status = ("partial" if readings else "invalid") if repaired else "open"
    return Outcome(status, readings, problems, repaired, withheld)


class Collector:
    """Ask open questions, and keep every answer in the journal.

    Args:
        ask: function that sends a request and returns the answer; raises UnansweredError or UnusableError.
        journal: journal that keeps the answers.
        schema: attributes to ask for.
        height: height of the images, in pixels.
        stop: event that is set when the run ends early, so that `ask` stops waiting.
    """

    def __init__(
        self,
        ask: Callable[[Request], Reply],
        journal: Journal,
        schema: Schema,
        *,
        height: int,
        stop: threading.Event,
    ) -> None:
        self._ask, self._journal, self._schema, self._height, self._stop = ask, journal, schema, height, stop
        self._failed_in_a_row = 0

    def answer(self, question: Question) -> Status:
        """Ask a question until it is no longer open, at most twice.

        Raises:
            UnusableError: when no question can be answered.
        """
        image = None
        while True:
            replies = self._journal.replies(question.key)
            outcome = judge(replies, self._schema)
            if outcome.status != "open" or self._stop.is_set():
                return outcome.status
            image = image or compose(question.images, height=self._height, bounds=question.bounds)
            correction = None
            if replies:
                words = write_correction(outcome.problems, cut=replies[0].finish == "length")
                correction = replies[0].text, words
            try:
                self._journal.add(question, self._ask(Request(question.prompt, image, correction)))
                self._failed_in_a_row = 0
            except UnansweredError as error:
                self._fail(question, error)
                return "open"

    def _fail(self, question: Question, error: UnansweredError) -> None:
        if not error.failures:
            return
        self._journal.add_failure(question, error.failures)
        self._failed_in_a_row += 1
        if self._failed_in_a_row >= MAX_FAILURES:
            raise UnusableError(f"{MAX_FAILURES} questions in a row got no answer; the last: {error}") from error

    def run(self, questions: Iterable[Question], report: Callable[[Status], None], *, threads: int) -> None:
        """Ask all questions, a few at a time; answers under way when the run ends early are still waited for and kept.

        Args:
            questions: questions, read as they are needed.
            report: function called with the status of each question.
            threads: number of questions asked at a time.

        Raises:
            UnusableError: when no question can be answered.
        """
        running: set[Future[Status]] = set()
        with ThreadPoolExecutor(threads) as pool:
            try:
                for question in questions:
                    if len(running) == threads:
                        running = _finish_some(running, report)
                    running.add(pool.submit(self.answer, question))
                while running:
                    running = _finish_some(running, report)
            except BaseException:
                self._stop.set()
                raise


def _finish_some(running: set[Future[Status]], report: Callable[[Status], None]) -> set[Future[Status]]:
    done, running = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        report(future.result())
    return running
