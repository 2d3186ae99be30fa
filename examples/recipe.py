"""Recipes: settings of a published experiment, each value marked with who says so.

A recipe stands beneath the command line: `--recipe rgbnt201 --epochs 10` is the recipe with other epochs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

Record = TypeVar("Record")


class Value(NamedTuple):
    """Value of a setting in a recipe, who says so, and why, in half a line."""

    value: Any
    source: Literal["paper", "research code", "ours"]
    why: str


# By the name of a field of any record of settings; "rates.backbone" is the entry "backbone" of the field "rates".
Recipe = dict[str, Value]


def paper(value: object, where: str) -> Value:
    """A value of the paper, and where it says so."""
    return Value(value, "paper", where)


def research_code(value: object, why: str) -> Value:
    """A value of the code that the paper's authors published, where the paper is silent or says otherwise."""
    return Value(value, "research code", why)


def ours(value: object, why: str) -> Value:
    """A value of our own, where neither says one, or we have a reason to differ."""
    return Value(value, "ours", why)


def changed(record: Record, values: Mapping[str, Any]) -> Record:
    """The record with those of the `values` that belong to it, by the names that recipes and variants use.

    Examples:
        >>> from stmi_layers.training import Schedule
        >>> changed(Schedule(), {"epochs": 3, "rates.backbone": 1e-5, "masks": "none"}).rates
        {'backbone': 1e-05}
    """
    fields = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}  # pyright: ignore[reportArgumentType]
    changes: dict[str, Any] = {}
    for name, value in values.items():
        whole, _, entry = name.partition(".")
        if whole in fields:
            changes[whole] = {**changes.get(whole, fields[whole]), entry: value} if entry else value
    return dataclasses.replace(record, **changes)  # pyright: ignore[reportArgumentType]


def read(records: Mapping[str, object], name: str) -> Any:
    """The value that a name of a recipe has in some records.

    Raises:
        ValueError: when it is in none of them.
    """
    whole, _, entry = name.partition(".")
    for record in records.values():
        if hasattr(record, whole):
            value = getattr(record, whole)
            return value.get(entry) if entry else value
    raise ValueError(f"settings must be fields of {', '.join(records)}; received {name!r}")
