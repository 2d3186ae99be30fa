"""A value of a recipe, and whose it is."""

from typing import Any, Literal, NamedTuple


class Value(NamedTuple):
    """What a setting is in a recipe, who says so, and why, in half a line."""

    value: Any
    source: Literal["paper", "research code", "ours"]
    why: str


Recipe = dict[str, Value]


def paper(value: object, where: str) -> Value:
    """The paper's, and where it says so."""
    return Value(value, "paper", where)


def research_code(value: object, why: str) -> Value:
    """Of the code its authors published, where the paper is silent or says otherwise."""
    return Value(value, "research code", why)


def ours(value: object, why: str) -> Value:
    """Where neither says it, or we have a reason to do otherwise."""
    return Value(value, "ours", why)
