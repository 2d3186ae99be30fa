"""Client of an OpenAI-compatible server that retries failed requests.

The openai client reads the key from the environment variable OPENAI_API_KEY. The key is removed from every text that
this file returns.
"""

import json
import math
import os
import random
import threading
import time
import weakref
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Literal, NamedTuple

from examples.prepare.captions.answers import answer_schema
from examples.prepare.captions.questions import Reply, Request, data_url
from examples.prepare.captions.schema import Schema

AnswerFormat = Literal["json_schema", "json_object", "text"]
FILTERED = {"content_filter", "content_policy_violation"}  # error codes that are refusals


class UnansweredError(Exception):
    """A question got no answer; `failures` counts the attempts by kind. Other questions may still be answered."""

    def __init__(self, message: str, failures: Mapping[str, int]) -> None:
        super().__init__(message)
        self.failures = dict(failures)


class UnusableError(Exception):
    """No question can be answered: the key, the address or the model is wrong, or the credit is used up."""


class _Failure(NamedTuple):
    """A failed request: kind, message, whether a retry may succeed, and the seconds that the server asks to wait."""

    kind: str
    message: str
    again: bool
    wait: float | None = None


class Pace:
    """Rate limit of requests per minute, common to all threads.

    Args:
        per_minute: largest number of requests per minute; 0 for no limit.
        stop: event that ends every wait.
    """

    def __init__(self, per_minute: float, stop: threading.Event) -> None:
        self.interval = 60 / per_minute if per_minute else 0.0
        self.stop = stop
        self._next = 0.0
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Wait until the caller may send its request."""
        with self._lock:
            turn = max(self._next, time.monotonic())
            self._next = turn + self.interval
        self.sleep(turn - time.monotonic())

    def hold(self, seconds: float) -> None:
        """Hold all requests for some seconds, because a server that asks one thread to wait means all threads."""
        with self._lock:
            self._next = max(self._next, time.monotonic() + seconds)

    def sleep(self, seconds: float) -> None:
        if self.stop.wait(max(0.0, seconds)):
            raise UnansweredError("the run is being stopped", {})


class Endpoint:
    """Function that asks one model of one server.

    Args:
        base_url: address of the API, with its version: `http://localhost:8000/v1`.
        model: name of the model on the server.
        schema: attributes to ask for, for `answer_format`.
        pace: rate limit shared by all threads.
        answer_format: answer format that the server can enforce.
        timeout: seconds until an attempt counts as failed.
        attempts: largest number of attempts per question.
        backoff: seconds before the second attempt; doubled for each next one up to 60, times a random number in
            [0.5, 1].
        max_wait: longest `Retry-After` to wait for, in seconds; a longer one ends the run.
        fields: further fields of every request, such as `temperature`.

    Raises:
        ImportError: when the client is not installed.
        ValueError: when OPENAI_API_KEY is not set.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        schema: Schema,
        pace: Pace,
        *,
        answer_format: AnswerFormat = "json_schema",
        timeout: float = 60.0,
        attempts: int = 6,
        backoff: float = 1.0,
        max_wait: float = 300.0,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            import openai
        except ImportError as error:
            raise ImportError(
                "asking a server needs the openai client; from a clone: pip install '.[captions]'"
            ) from error
        self._key = os.environ.get("OPENAI_API_KEY", "")
        if not self._key:
            raise ValueError("OPENAI_API_KEY is not set; set it, to any text if the server needs no key")
        self._openai = openai
        # Retries are counted and paced here, so the client makes no retries. Redirects are not followed, so that images
        # go only to the address that the user gave.
        http = openai.DefaultHttpxClient(follow_redirects=False)
        weakref.finalize(self, http.close)
        self._client = openai.OpenAI(base_url=base_url, timeout=timeout, max_retries=0, http_client=http)
        self._pace, self._attempts, self._backoff, self._max_wait = pace, attempts, backoff, max_wait
        self._arguments: dict[str, Any] = {"model": model, "extra_body": dict(fields or {})}
        if answer_format == "json_schema":
            named = {"name": "attributes", "strict": True, "schema": answer_schema(schema)}
            self._arguments["response_format"] = {"type": "json_schema", "json_schema": named}
        elif answer_format == "json_object":
            self._arguments["response_format"] = {"type": "json_object"}

    def __call__(self, request: Request) -> Reply:
        """Ask until there is an answer or a refusal.

        Raises:
            UnansweredError: when every attempt failed, or the run is being stopped.
            UnusableError: when no other question would be answered either.
        """
        arguments = self._arguments | {"messages": _messages(request)}
        failures: Counter[str] = Counter()
        while True:
            self._pace.wait()
            outcome = self._attempt(arguments)
            if isinstance(outcome, Reply):
                return outcome._replace(failures=dict(failures))
            failures[outcome.kind] += 1
            if not outcome.again or failures.total() >= self._attempts:
                attempts = f"{failures.total()} attempts" if failures.total() > 1 else "1 attempt"
                raise UnansweredError(f"no answer after {attempts}; the last: {outcome.message}", failures)
            self._wait_for_next(outcome, failures.total())

    def _wait_for_next(self, failure: _Failure, attempts: int) -> None:
        if failure.wait is not None and failure.wait > self._max_wait:
            raise UnusableError(f"the server asks to wait {failure.wait:.0f} s ({failure.message}); run again later")
        if failure.wait is not None:
            self._pace.hold(failure.wait)
            self._pace.sleep(failure.wait + self._backoff * random.uniform(0.0, 0.5))
        else:
            self._pace.sleep(min(60.0, self._backoff * 2 ** (attempts - 1)) * random.uniform(0.5, 1.0))

    def _attempt(self, arguments: dict[str, Any]) -> Reply | _Failure:
        try:
            response = self._client.chat.completions.with_raw_response.create(**arguments)
        except self._openai.APITimeoutError as error:
            return _Failure("timeout", self._clean(error), again=True)
        except self._openai.APIConnectionError as error:
            return _Failure("connection", self._clean(f"{error} {error.__cause__ or ''}"), again=True)
        except self._openai.APIStatusError as error:
            return self._status(error)
        try:
            # Parsed here, because versions of the client treat a broken body differently.
            return self._reply(json.loads(response.http_response.text))
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            return _Failure(
                "malformed body", f"the body is not a chat completion ({self._clean(repr(error))})", again=True
            )

    def _reply(self, body: dict[str, Any]) -> Reply:
        choice = body["choices"][0]
        message, usage = choice["message"], body.get("usage") or {}
        read, written = usage.get("prompt_tokens"), usage.get("completion_tokens")
        return Reply(
            text=self._clean(message.get("content") or ""),
            refusal=self._clean(message.get("refusal") or ""),
            finish=str(choice.get("finish_reason") or "stop"),
            model=str(body.get("model") or ""),
            prompt_tokens=read if isinstance(read, int) else None,
            completion_tokens=written if isinstance(written, int) else None,
        )

    def _status(self, error: Any) -> Reply | _Failure:
        message = self._clean(f"HTTP {error.status_code}: {error.message}")
        if error.code in FILTERED:
            return Reply("", refusal=message, finish="content_filter", prompt_tokens=0, completion_tokens=0)
        if 300 <= error.status_code < 400:
            place = self._clean(error.response.headers.get("location", "nowhere"))
            raise UnusableError(
                f"HTTP {error.status_code}: the server points to {place}, which is not followed; give the final address"
            ) from None
        if error.status_code in (401, 403, 404) or error.code == "insufficient_quota":
            raise UnusableError(message) from None  # the message of the client may hold the key
        again = error.status_code in (408, 409, 425, 429) or error.status_code >= 500
        return _Failure(f"HTTP {error.status_code}", message, again, retry_after(error.response.headers))

    def _clean(self, text: object) -> str:
        # A short key is a placeholder, whose letters may occur in answers.
        return str(text).replace(self._key, "***") if len(self._key) >= 8 else str(text)


def _messages(request: Request) -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": data_url(request.image)}}
    messages: list[dict[str, Any]] = [{"role": "user", "content": [{"type": "text", "text": request.prompt}, image]}]
    if request.correction is not None:
        answer, correction = request.correction
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": correction}]
    return messages


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Parse the seconds that a server asks to wait, from seconds or a date; None if missing or invalid.

    >>> retry_after({"retry-after": "2.5"}), retry_after({"retry-after": "soon"})
    (2.5, None)
    """
    value = headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
        return max(0.0, seconds) if math.isfinite(seconds) else None
    except ValueError:
        pass
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
