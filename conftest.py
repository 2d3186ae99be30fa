"""Run the Python blocks of README and docs as tests."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import stmi_layers.training._torchvision  # noqa: F401  torchvision beside a CPU torch, for the backbones

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["*.md"]).pytest()

# Their doctests are collected by import, and triton is for Linux alone.
collect_ignore_glob = [] if find_spec("triton") else ["src/stmi_layers/kernels/triton_[bf]*ward.py"]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--site", help="folder of the built documentation, for the checks in tests/browser")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The checks of the built site run where there is one to check."""
    return True if collection_path.name == "browser" and config.getoption("site") is None else None
