"""Recipes: settings of a published experiment, each value with its source and reason.

Flags take precedence over a recipe: `--recipe rgbnt201 --epochs 10` is the recipe with other epochs.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, TypeVar

Record = TypeVar("Record")


class Value(NamedTuple):
    """Value of a setting in a recipe, its source, and its reason in half a line."""

    value: Any
    source: Literal["paper", "research code", "ours"]
    why: str


# Values by name of a field of any settings record; "rates.backbone" is the entry "backbone" of the field "rates".
Recipe = dict[str, Value]


def paper(value: object, where: str) -> Value:
    """Mark a value of the paper, with its place in the paper."""
    return Value(value, "paper", where)


def research_code(value: object, why: str) -> Value:
    """Mark a value of the code of the paper's authors, if the paper is silent or differs."""
    return Value(value, "research code", why)


def ours(value: object, why: str) -> Value:
    """Mark a value of our own, if neither paper nor code has one, or we have a reason to differ."""
    return Value(value, "ours", why)


def changed(record: Record, values: Mapping[str, Any]) -> Record:
    """Replace the fields of a record that `values` name, by the names that recipes and variants use.

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
    """Return the value in some records of a name that recipes use.

    Raises:
        ValueError: when no record has this name.
    """
    whole, _, entry = name.partition(".")
    for record in records.values():
        if hasattr(record, whole):
            value = getattr(record, whole)
            return value.get(entry) if entry else value
    raise ValueError(f"settings must be fields of {', '.join(records)}; received {name!r}")
