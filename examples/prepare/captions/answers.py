"""Parsing and checking of a model's answers."""

import json
import math
import re
from typing import Any, NamedTuple

from examples.prepare.captions.schema import NONE, Attribute, Schema

MAX_WORDS = 6  # largest number of words of a value in free text
UNKNOWN = re.compile(
    r"\b(?:unknown|unclear|unsure|uncertain|undetermined|indeterminate|indiscernible|indistinguishable|unspecified"
    r"|unidentif\w+|unrecogni\w+|obscured|occluded|n/?a|not"
    r"|(?:can ?no?t|can'?t|could ?no?t|couldn'?t|unable to|hard to|impossible to|difficult to)\b.*)\b"
    r"|^(?:null|\W*)$",
    re.IGNORECASE,
)
ABSENT = re.compile(r"(?:none|nothing|no|without)\b.*", re.IGNORECASE)
REFUSAL = re.compile(
    r"\b(?:sorry|apologi[sz]e|(?:can ?no?t|can'?t|won'?t|unable to|not able to) (?:\w+ ){0,2}"
    r"(?:assist|help|identify|describe|comply|provide|analy[sz]e|answer|do))\b",
    re.IGNORECASE,
)
# "AB 123 CD", "B-MW 4711", "京A·12345": capitals and digits, also in several groups; or one group in any case.
PLATE = re.compile(r"(?<![A-Z0-9])[A-Z0-9]+(?:[ .·-]+[A-Z0-9]+)*(?![A-Za-z0-9])|\b[A-Za-z0-9]+\b")


class Reading(NamedTuple):
    """A value (None when unknown), and the model's confidence in it, in [0, 1]."""

    value: str | None
    confidence: float


class Parsed(NamedTuple):
    """Values of an answer, its errors, and how many values were withheld as possible number plates.

    An entry that is wrong is not among the readings.
    """

    readings: dict[str, Reading]
    problems: list[str]
    withheld: int


def answer_schema(schema: Schema) -> dict[str, Any]:
    """Return the JSON schema of an answer, for servers that can enforce a schema."""
    entry = {
        "attribute": {"type": "string", "enum": [attribute.name for attribute in schema.attributes]},
        "value": {"type": ["string", "null"]},
        "confidence": {"type": "number"},
    }
    return _closed_object({"attributes": {"type": "array", "items": _closed_object(entry)}})


def _closed_object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def is_refusal(text: str) -> bool:
    """Tell whether a text without any JSON declines to answer."""
    return "{" not in text and REFUSAL.search(text) is not None


def parse_answer(text: str, schema: Schema, *, number_plates: bool = False) -> Parsed:
    """Parse an answer and check it against the schema of the question.

    Args:
        text: JSON, bare or in a Markdown fence.
        schema: attributes of the question.
        number_plates: when False, free text that may be a number plate becomes unknown, whatever its attribute.

    >>> from examples.prepare.captions.schema import Attribute
    >>> colour = Schema("parcel", (Attribute("colour", "main colour", role="adjective"),))
    >>> parse_answer('{"attributes": [{"attribute": "colour", "value": "Unclear", "confidence": 1}]}', colour)
    Parsed(readings={'colour': Reading(value=None, confidence=1.0)}, problems=[], withheld=0)
    >>> parse_answer('{"attributes": []}', colour).problems
    ["the attribute 'colour' is missing"]
    """
    try:
        answer = json.loads(_unfenced(text))
    except (ValueError, RecursionError) as error:
        return Parsed({}, [f"the answer is not JSON ({error or type(error).__name__})"], 0)
    if not isinstance(answer, dict) or not isinstance(answer.get("attributes"), list):
        return Parsed({}, ['the answer is not an object with a list "attributes"'], 0)
    attributes = {attribute.name.lower(): attribute for attribute in schema.attributes}
    readings: dict[str, Reading] = {}
    problems: list[str] = []
    seen: set[str] = set()
    for position, entry in enumerate(answer["attributes"]):
        name = entry.get("attribute") if isinstance(entry, dict) else None
        attribute = attributes.get(name.strip().lower()) if isinstance(name, str) else None
        if attribute is None:
            problems.append(f"entry {position} names no attribute that was asked: {_shown(entry)}")
        elif attribute.name in seen:
            problems.append(f"the attribute {attribute.name!r} is there more than once")
            readings.pop(attribute.name, None)
        else:
            seen.add(attribute.name)
            reading = _read_entry(entry, attribute)
            if isinstance(reading, str):
                problems.append(f"the attribute {attribute.name!r} {reading}")
            else:
                readings[attribute.name] = reading
    problems += [f"the attribute {one.name!r} is missing" for one in schema.attributes if one.name not in seen]
    free = [] if number_plates else [attribute.name for attribute in schema.attributes if not attribute.options]
    plates = [name for name in free if name in readings and is_plate(readings[name].value or "")]
    return Parsed(readings | {name: Reading(None, 0.0) for name in plates}, problems, len(plates))


def _unfenced(text: str) -> str:
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL | re.IGNORECASE)
    return fenced[1] if fenced else text


def _read_entry(entry: dict[str, Any], attribute: Attribute) -> Reading | str:
    """Return the reading of an entry, or the error."""
    value, confidence = entry.get("value", False), entry.get("confidence")
    if isinstance(confidence, bool) or not isinstance(confidence, int | float):
        return f"needs a number as confidence, not {_shown(confidence)}"
    if not (math.isfinite(confidence) and 0 <= confidence <= 1):
        return f"needs a confidence between 0 and 1, not {_shown(confidence)}"
    if value is not None and not isinstance(value, str):
        return f"needs text or null as value, not {_shown(value)}"
    known = normalise(value or "")
    if known is None:
        return Reading(None, float(confidence))
    if attribute.options:
        allowed = {option.lower(): option for option in attribute.options}
        if known.lower() not in allowed:
            return f"needs one of {', '.join(attribute.options)} or null as value, not {_shown(value)}"
        return Reading(allowed[known.lower()], float(confidence))
    if len(known.split()) > MAX_WORDS:
        return f"needs at most {MAX_WORDS} words as value, not {_shown(value)}"
    return Reading(known, float(confidence))


def normalise(value: str) -> str | None:
    """Return a value as it appears in a sentence, `none` when the thing is absent, or None when it is unknown.

    >>> normalise(" A red  jacket. "), normalise("no hat"), normalise("not visible")
    ('red jacket', 'none', None)
    """
    plain = re.sub(r"^(?:an?|the)\s+", "", " ".join(value.split()).strip(" .,;:!?\"'{}[]()"), flags=re.IGNORECASE)
    if UNKNOWN.search(plain):
        return None
    return NONE if ABSENT.fullmatch(plain) else plain


def is_plate(value: str) -> bool:
    """Tell whether a value may hold a number plate.

    A plate has five or more letters and digits in a run, with at least two digits and a letter. Some names of cars look
    like a plate: losing such an attribute is better than publishing a plate.

    >>> [is_plate(value) for value in ("sticker ABC 1234", "京A·12345", "ab12cde", "Peugeot 308", "RAV4", "white van")]
    [True, True, True, False, False, False]
    """
    runs = (re.sub(r"[^A-Za-z0-9]", "", run) for run in PLATE.findall(value))
    return any(len(run) >= 5 and sum(map(str.isdigit, run)) >= 2 and any(map(str.isalpha, run)) for run in runs)


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else text[:80] + "..."
