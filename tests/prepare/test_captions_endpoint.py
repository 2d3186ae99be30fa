"""One question to a scripted server: failures with and without another attempt, and waiting times."""

import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace

import pytest
from PIL import Image

from captions_server import (
    KEY,
    Server,
    always,
    answer,
    cut,
    fail,
    good_answer,
    hang,
    hang_up,
    raw,
    say,
    serving,
    then_well,
)
from examples.prepare.captions import endpoint as module
from examples.prepare.captions.collect import judge
from examples.prepare.captions.endpoint import Endpoint, Pace, UnansweredError, UnusableError, retry_after
from examples.prepare.captions.questions import Request
from examples.prepare.captions.schema import PERSONS

REQUEST = Request("What is it? taken in RGB", Image.new("RGB", (8, 8)))


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def endpoint(server: Server, **options) -> Endpoint:
    pace = Pace(options.pop("per_minute", 0), options.pop("stop", threading.Event()))
    return Endpoint(server.url, "tiny", PERSONS, pace, **({"backoff": 0.01} | options))


FAULTS = {
    "half an answer": (cut, "connection"),
    "no answer": (hang_up, "connection"),
    "a page": (raw(b"<html>busy</html>"), "malformed body"),
    "no choices": (raw(b'{"choices": []}'), "malformed body"),
    "null": (raw(b"null"), "malformed body"),
    "429": (fail(429), "HTTP 429"),
    "429 and how long": (fail(429, retry_after="0.05"), "HTTP 429"),
    "500": (fail(500), "HTTP 500"),
    "503": (fail(503), "HTTP 503"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_counted_and_overcome(fault):
    behaviour, kind = FAULTS[fault]
    with serving(then_well(behaviour, behaviour)) as server:
        reply = endpoint(server)(REQUEST)
    assert reply.failures == {kind: 2}
    assert (reply.text, reply.model) == (good_answer(server.asked[0].body), "tiny")
    assert (reply.prompt_tokens, reply.completion_tokens) == (100, 10)
    assert len(server.asked) == 3


def test_silence_is_counted_and_overcome(monkeypatch):
    """The client becomes patient at its third attempt, because a busy machine answers late as well."""
    turns, wait = [], Pace.wait

    def take_turn(pace: Pace) -> None:
        wait(pace)
        turns.append(pace)
        ask._client.timeout = 0.2 if len(turns) < 3 else 60.0

    monkeypatch.setattr(Pace, "wait", take_turn)
    with serving(lambda asked, before: hang if len(turns) < 3 else answer) as server:
        ask = endpoint(server)
        reply = ask(REQUEST)
    assert reply.failures == {"timeout": 2}
    assert reply.text == good_answer(server.asked[0].body)
    assert len(server.asked) == 3


@pytest.mark.parametrize("fault", ["half an answer", "a page", "429", "500"])
def test_a_fault_that_stays_leaves_the_question_open(fault):
    behaviour, kind = FAULTS[fault]
    with serving(always(behaviour)) as server, pytest.raises(UnansweredError, match="no answer after 3 attempts") as no:
        endpoint(server, attempts=3)(REQUEST)
    assert no.value.failures == {kind: 3}
    assert len(server.asked) == 3


def test_what_another_attempt_cannot_mend_is_asked_once():
    with serving(always(fail(400, message="image too large"))) as server:
        with pytest.raises(UnansweredError, match=r"after 1 attempt; .*HTTP 400.*image too large"):
            endpoint(server)(REQUEST)
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("behaviour", "message"),
    [
        (fail(401, message=f"wrong key {KEY}"), r"HTTP 401: .*wrong key \*\*\*"),
        (fail(403), "HTTP 403"),
        (fail(404, message="no model tiny"), "no model tiny"),
        (fail(429, code="insufficient_quota"), "HTTP 429"),
        (fail(307), "HTTP 307: the server points to nowhere, which is not followed"),
        (fail(429, retry_after="3600"), "asks to wait 3600 s .* run again later"),
    ],
)
def test_what_no_question_can_overcome_ends_the_run(behaviour, message):
    with serving(always(behaviour)) as server:
        with pytest.raises(UnusableError, match=message) as caught:
            endpoint(server)(REQUEST)
        assert len(server.asked) == 1
    assert KEY not in str(caught.value)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_images_go_where_the_user_said_and_not_where_an_answer_points(status):
    with serving(always(answer)) as other:
        elsewhere = f"{other.url}/chat/completions"
        with serving(always(fail(status, location=elsewhere))) as server:
            with pytest.raises(UnusableError, match=f"HTTP {status}: the server points to {elsewhere}, which is not"):
                endpoint(server)(REQUEST)
            assert len(server.asked) == 1
        assert not other.asked


@pytest.mark.parametrize(
    ("behaviour", "why"),
    [
        (say(None, refusal="I would rather not."), "I would rather not."),
        (say("", finish="content_filter"), ""),
        (fail(400, code="content_filter", message="filtered"), "filtered"),
        (say("I'm sorry, but I can't help with identifying people."), ""),
    ],
)
def test_a_refusal_is_an_answer(behaviour, why):
    with serving(always(behaviour)) as server:
        reply = endpoint(server)(REQUEST)
    outcome = judge([reply], PERSONS)
    assert outcome.status == "refused"
    assert why in outcome.problems[0]
    assert outcome.problems[0]
    assert len(server.asked) == 1


def test_the_request_has_the_shape_of_the_protocol():
    with serving(always(answer)) as server:
        ask = endpoint(server, fields={"temperature": 0, "top_k": 9})
        ask(REQUEST._replace(correction=("first", "wrong")))
        endpoint(server, answer_format="json_object")(REQUEST)
        endpoint(server, answer_format="text")(REQUEST)
    first, second, third = (asked.body for asked in server.asked)
    user, assistant, correction = first["messages"]
    assert [part["type"] for part in user["content"]] == ["text", "image_url"]
    assert user["content"][1]["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert (assistant, correction) == (
        {"role": "assistant", "content": "first"},
        {"role": "user", "content": "wrong"},
    )
    assert (first["model"], first["temperature"], first["top_k"]) == ("tiny", 0, 9)
    assert first["response_format"]["json_schema"]["strict"] is True
    assert second["response_format"] == {"type": "json_object"}
    assert "response_format" not in third


def test_waits_double_and_are_random(monkeypatch):
    waits = []
    monkeypatch.setattr(Pace, "sleep", lambda self, seconds: waits.append(seconds))
    with serving(always(fail(500))) as server, pytest.raises(UnansweredError):
        endpoint(server, attempts=9, backoff=1.0)(REQUEST)
    waits = [wait for wait in waits if wait > 0.01]
    assert len(waits) == 8
    for wait, longest in zip(waits, [1, 2, 4, 8, 16, 32, 60, 60], strict=True):
        assert longest / 2 <= wait <= longest
    assert len({wait / longest for wait, longest in zip(waits, [1, 2, 4, 8, 16, 32, 60, 60], strict=True)}) == 8


def test_retry_after_is_obeyed_by_every_thread(monkeypatch):
    held, hold = threading.Event(), Pace.hold
    monkeypatch.setattr(Pace, "hold", lambda pace, seconds: (hold(pace, seconds), held.set()))
    with serving(lambda asked, before: fail(429, retry_after="0.5") if len(server.asked) == 1 else answer) as server:
        ask = endpoint(server)
        threads = [threading.Thread(target=ask, args=(REQUEST,)) for _ in range(3)]
        threads[0].start()
        assert held.wait(60)  # the server has told the first to wait
        for thread in threads[1:]:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(server.asked) == 4
    assert min(asked.time for asked in server.asked[1:]) - server.asked[0].time >= 0.5


def test_retry_after_as_a_date():
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 60 < (retry_after({"retry-after": moment}) or 0) <= 90
    assert retry_after({"retry-after": format_datetime(datetime(2020, 1, 1, tzinfo=UTC), usegmt=True)}) == 0
    assert [retry_after({"retry-after": value}) for value in ("", "inf", "-5")] == [None, None, 0.0]


def test_requests_a_minute():
    begin = time.monotonic()
    with serving(then_well(fail(500))) as server:
        ask = endpoint(server, per_minute=600)
        threads = [threading.Thread(target=ask, args=(REQUEST._replace(prompt=str(n)),)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    times = sorted(asked.time for asked in server.asked)
    assert len(times) == 6
    assert all(moment - begin >= 0.1 * number for number, moment in enumerate(times)), times


def test_turns_are_spread_over_the_minute(monkeypatch):
    """Of requests that come at once, by a clock that stands still; a busy machine shifts their arrivals."""
    waits = []
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 8.0))
    monkeypatch.setattr(Pace, "sleep", lambda self, seconds: waits.append(seconds))
    pace = Pace(600, threading.Event())
    for _ in range(4):
        pace.wait()
    assert waits == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_a_run_that_ends_waits_for_nothing():
    stop = threading.Event()
    with serving(always(fail(500))) as server:
        threading.Timer(0.3, stop.set).start()
        begin = time.monotonic()
        with pytest.raises(UnansweredError, match="being stopped"):
            endpoint(server, stop=stop, backoff=50.0)(REQUEST)
    assert time.monotonic() - begin < 20  # a wait is of 25 seconds and more


def test_no_key_and_no_client(monkeypatch):
    with serving(always(answer)) as server:
        monkeypatch.delenv("OPENAI_API_KEY")
        with pytest.raises(ValueError, match="OPENAI_API_KEY is not set"):
            endpoint(server)
        monkeypatch.setitem(sys.modules, "openai", None)
        with pytest.raises(ImportError, match=r"from a clone: pip install '\.\[captions\]'"):
            endpoint(server)
