"""Local chat-completions server that follows a script: right answers, wrong answers, failures, no answer."""

import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

KEY = "sk-this-must-never-be-written"
Behaviour = Callable[["Handler", dict[str, Any]], None]


class Asked(NamedTuple):
    """A request as it arrived: what identifies it, the view it is about, whether it asks for a repair, and when."""

    key: str
    view: str
    repair: bool
    time: float
    body: dict[str, Any]


class Server(ThreadingHTTPServer):
    """Answers every request with what `script` returns for it.

    Args:
        script: takes the request and how often the very same one came before, and returns a behaviour.
    """

    daemon_threads = True

    def __init__(self, script: Callable[[Asked, int], Behaviour]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = script
        self.asked: list[Asked] = []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is what some tests are about."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        prompt = body["messages"][0]["content"][0]["text"]
        bands = re.search(r"taken in (\w+)", prompt)
        view = "composite" if "side by side" in prompt else bands[1] if bands else "?"
        key = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
        asked = Asked(key, view, len(body["messages"]) > 1, time.monotonic(), body)
        with self.server.lock:
            before = sum(one.key == key for one in self.server.asked)
            self.server.asked.append(asked)
        assert self.path == "/v1/chat/completions"
        self.server.script(asked, before)(self, body)

    def send(self, status: int, content: bytes, *, promised: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(promised or len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def serving(script: Callable[[Asked, int], Behaviour]) -> Iterator[Server]:
    with Server(script) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def completion(content: str | None, *, refusal: str | None = None, finish: str = "stop", usage: bool = True) -> bytes:
    message = {"role": "assistant", "content": content, "refusal": refusal}
    body: dict[str, Any] = {
        "id": "chat",
        "object": "chat.completion",
        "created": 0,
        "model": "tiny",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
    }
    if usage:
        body["usage"] = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return json.dumps(body).encode()


def say(content: str | None, **options: Any) -> Behaviour:
    """Answer with this text, whatever is asked."""
    return lambda handler, body: handler.send(200, completion(content, **options))


def answer(handler: Handler, body: dict[str, Any]) -> None:
    """Answer well: the same image, the same values."""
    handler.send(200, completion(good_answer(body)))


def good_answer(body: dict[str, Any]) -> str:
    """Every attribute of the prompt; a value from the options, or a word; some are unknown."""
    prompt, image = body["messages"][0]["content"]
    seed = hashlib.sha256(image["image_url"]["url"].encode()).digest()
    entries = []
    for number, (name, kind) in enumerate(re.findall(r"^- ([^:]+): .*\((.*)\)$", prompt["text"], re.MULTILINE)):
        choices = kind.removeprefix("one of: ").split(", ") if kind.startswith("one of") else ["red", "green", "blue"]
        value = None if seed[number] % 4 == 0 else choices[seed[number] % len(choices)]
        entries.append({"attribute": name, "value": value, "confidence": seed[number + 1] / 255})
    return json.dumps({"attributes": entries})


def fail(status: int, *, code: str | None = None, message: str = "no", **headers: str) -> Behaviour:
    body = json.dumps({"error": {"message": message, "code": code, "type": None, "param": None}}).encode()
    return lambda handler, _: handler.send(status, body, **headers)


def hang(handler: Handler, body: dict[str, Any]) -> None:
    """Say nothing until the client hangs up."""
    handler.connection.recv(1)
    handler.close_connection = True


def cut(handler: Handler, body: dict[str, Any]) -> None:
    """Send half of a good answer, then hang up."""
    content = completion(good_answer(body))
    handler.send(200, content[: len(content) // 2], promised=len(content))
    handler.close_connection = True


def hang_up(handler: Handler, body: dict[str, Any]) -> None:
    handler.close_connection = True


def raw(content: bytes) -> Behaviour:
    return lambda handler, _: handler.send(200, content)


def always(behaviour: Behaviour) -> Callable[[Asked, int], Behaviour]:
    return lambda asked, before: behaviour


def then_well(*behaviours: Behaviour) -> Callable[[Asked, int], Behaviour]:
    """Behave so the first times a request comes, then well."""
    return lambda asked, before: behaviours[before] if before < len(behaviours) else answer
