"""Fixtures: the built site, served under a sub-path as static hosts do, and one browser for all checks."""

import functools
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import pytest
from playwright.sync_api import Browser, Page, Playwright, expect, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
NO_BROWSER = (
    "the site was built and not checked, because there is no Chromium; install one (Debian: apt-get install chromium; "
    "anywhere: .venv/bin/python -m playwright install chromium) and run make docs again"
)
PREFIX = "/some/where"
# Milliseconds that anything may take, because other programs may hold the processors.
PATIENCE = 120_000
expect.set_options(timeout=PATIENCE)
# Scripts go on after a page has loaded: interactive figures replace their stills and bring pictures of their own. One
# that cannot be shown is complete as well.
SETTLED = """() => document.fonts.status === "loaded" && !document.querySelector(".arithmatex:not([data-formula])")
    && !document.querySelector("article img[id^='try-']")
    && [...document.images].every((image) => image.complete || image.loading === "lazy")
    && [...document.querySelectorAll("article table:not([class])")].every((table) => table.closest("[tabindex]"))"""


# A page builds the index of its search as soon as it has loaded, which is half the time of a visit: who sends this
# header gets an index of nothing. The test of the search does not.
NO_SEARCH = {"Save-Data": "on"}
INDEX = f"{PREFIX}/search/search_index.json"


class _UnderPrefix(SimpleHTTPRequestHandler):
    """Files below PREFIX and nothing else, so that a link from the root of the host is a broken one."""

    protocol_version = "HTTP/1.1"  # connections are kept

    def send_head(self) -> IO[bytes] | None:
        if self.path != INDEX or self.headers["Save-Data"] is None:
            return super().send_head()
        content = json.dumps(json.loads(Path(self.translate_path(INDEX)).read_text()) | {"docs": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return BytesIO(content)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "max-age=3600")  # the site stays as it is
        super().end_headers()

    def translate_path(self, path: str) -> str:
        inside = path.removeprefix(PREFIX) if path.startswith(f"{PREFIX}/") else "/outside-of-the-site"
        return super().translate_path(inside)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="session")
def site(pytestconfig: pytest.Config) -> Path:
    return Path(pytestconfig.getoption("site")).resolve()


@pytest.fixture(scope="session")
def address(site: Path) -> Iterator[str]:
    """Where the site is served, with a slash at the end."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_UnderPrefix, directory=site)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}{PREFIX}/"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        program = find_browser(playwright)
        if program is None and os.environ.get("CI"):
            pytest.fail(NO_BROWSER)
        if program is None:
            pytest.skip(NO_BROWSER)
        browser = playwright.chromium.launch(
            executable_path=program,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            timeout=PATIENCE,
        )
        yield browser
        browser.close()


def find_browser(playwright: Playwright) -> str | None:
    """The Chromium of the system, or that of `playwright install`."""
    own = playwright.chromium.executable_path
    return next(filter(None, map(shutil.which, NAMES)), own if Path(own).is_file() else None)


@contextmanager
def _page(browser: Browser, **options: Any) -> Iterator[Page]:
    context = browser.new_context(**options)
    context.set_default_timeout(PATIENCE)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def settle() -> Callable[[Page], object]:
    """Wait until a page that has loaded is as its readers see it."""
    return lambda page: page.wait_for_function(SETTLED)


@pytest.fixture(scope="session")
def visitor(browser: Browser) -> Iterator[Page]:
    """A page that every check visits in turn."""
    with _page(browser, color_scheme="light", reduced_motion="reduce", extra_http_headers=NO_SEARCH) as page:
        page.context.add_init_script("localStorage.clear()")  # follows the system until a button is pressed
        yield page


@pytest.fixture
def reader(browser: Browser) -> Iterator[Page]:
    """A page of its own, whose errors in scripts fail the test."""
    errors: list[str] = []
    with _page(browser, viewport={"width": 1280, "height": 900}, extra_http_headers=NO_SEARCH) as page:
        page.on("pageerror", lambda error: errors.append(str(error)))
        yield page
    assert errors == []


@pytest.fixture
def opened(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open pages with options of their own."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(_page(browser, **options))
