"""Run the Python blocks of README and docs as tests, and compare what they print with the block of text behind them."""

import io
from contextlib import redirect_stdout
from doctest import ELLIPSIS, OutputChecker
from importlib.util import find_spec
from pathlib import Path

import pytest
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

from examples.optional import import_torchvision

if find_spec("torchvision"):
    import_torchvision()  # also beside a torch of another build, before a library imports it


class _Printing(PythonEvaluator):
    """Runs a block, and remembers what it printed and where it ends."""

    def __call__(self, example: Example) -> None:
        printed = io.StringIO()
        with redirect_stdout(printed):
            super().__call__(example)
        example.document.namespace["_printed"] = (example.region.end, printed.getvalue())


def _compare(example: Example) -> None:
    """A block of text right behind a block of code that printed something is what it printed, `...` for any text."""
    end, printed = example.document.namespace.get("_printed", (0, ""))
    if printed and not example.document.text[end : example.region.start].strip():
        shown = example.parsed
        assert OutputChecker().check_output(shown, printed, ELLIPSIS), f"printed:\n{printed}\nthe page shows:\n{shown}"


_parsers = [CodeBlockParser("python", _Printing()), CodeBlockParser("text", _compare)]
pytest_collect_file = Sybil(parsers=_parsers, patterns=["*.md"]).pytest()

# Their doctests are collected by import, and triton is for Linux alone.
collect_ignore_glob = [] if find_spec("triton") else ["src/stmi_layers/kernels/triton_[bf]*ward.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--site", help="folder of the built documentation, for the checks in tests/browser")
    parser.addoption("--python", help="interpreter of an environment with the wheel, for the script of the guide")
    parser.addoption("--slow", action="store_true", help="run the tests marked slow, too, as make test does")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is slow, unless it is asked for: by `--slow`, by `-m`, or by its own name."""
    if config.getoption("slow") or config.getoption("markexpr"):
        return
    named = {argument.partition("::")[2].partition("[")[0] for argument in config.args}
    slow = {
        item
        for item in items
        if item.get_closest_marker("slow") and item.nodeid.partition("::")[2].partition("[")[0] not in named
    }
    items[:] = [item for item in items if item not in slow]
    config.hook.pytest_deselected(items=list(slow))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The checks of the built site run where there is one to check. A conftest.py holds no doctests."""
    if collection_path.name == "conftest.py":
        return True
    return True if collection_path.name == "browser" and config.getoption("site") is None else None
