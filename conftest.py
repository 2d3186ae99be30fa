"""Run the Python blocks of README and docs as tests."""

from importlib.util import find_spec

import pytest
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser

import examples.stmi.torchvision_compat  # noqa: F401  torchvision beside a CPU torch, for the backbones

pytest_collect_file = Sybil(parsers=[PythonCodeBlockParser()], patterns=["*.md"]).pytest()

# Their doctests are collected by import, and triton is for Linux alone.
collect_ignore_glob = [] if find_spec("triton") else ["src/stmi_layers/kernels/triton_[bf]*ward.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Send all blocks of a page to one worker, for they share their names."""
    for item in items:
        if item.path.suffix == ".md":
            item.add_marker(pytest.mark.xdist_group(item.path.name))
