"""Test cases of layers and functions: one entry each, one module per group of layers.

A module has `CASES` for layers and may have `FUNCTIONS`.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from case import Case, FunctionCase


def _collect(name: str) -> dict[str, Any]:
    collected: dict[str, Any] = {}
    for module in sorted(info.name for info in iter_modules(__path__)):
        found = getattr(import_module(f"{__name__}.{module}"), name, {})
        if repeated := sorted(collected.keys() & found.keys()):
            raise ValueError(f"names of cases must differ; {module} repeats {', '.join(repeated)}")
        collected |= found
    return collected


CASES: dict[str, Case] = _collect("CASES")
FUNCTIONS: dict[str, FunctionCase] = _collect("FUNCTIONS")
