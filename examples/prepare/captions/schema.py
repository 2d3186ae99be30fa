"""Attributes of an object, and the place of each in the sentence.

`PERSONS` and `VEHICLES` are below. A table of your own is a TOML or JSON file of the same fields:

    subject = "parcel"

    [[attributes]]
    name = "colour"
    meaning = "main colour of the box"
    role = "adjective"

    [[attributes]]
    name = "label"
    meaning = "what is printed or stuck on it"
    options = ["none", "barcode", "address label"]
    phrase = "with {}"

which makes "A brown parcel with a barcode."
"""

import json
import tomllib
from collections import Counter
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

from beartype.door import is_bearable

NONE = "none"  # value of a thing that is visibly absent: a known value, left out of the sentence


@dataclass(frozen=True)
class Attribute:
    """One attribute of an object.

    Attributes:
        name: name under which the value is stored.
        meaning: description of the attribute in the question.
        options: values to choose from; empty for free text of a few words.
        role: "noun" replaces the schema's subject, "adjective" goes before a noun, "phrase" follows the subject.
        of: phrase whose noun an adjective describes; empty for the subject.
        phrase: words around the value of a phrase; adjacent phrases with equal words are joined.
        stand_in: noun of a phrase whose value is unknown while one of its adjectives is known.
        article: whether a phrase's value takes "a" or "an"; a number does not.
        number_plate: asked only when number plates are switched on.
    """

    name: str
    meaning: str
    options: tuple[str, ...] = ()
    role: Literal["noun", "adjective", "phrase"] = "phrase"
    of: str = ""
    phrase: str = "with {}"
    stand_in: str = ""
    article: bool = True
    number_plate: bool = False


@dataclass(frozen=True)
class Schema:
    """A kind of object and its attributes, in the order of the sentence.

    Attributes:
        subject: noun if no more specific noun is known, such as "person".
        attributes: at least one.

    Raises:
        ValueError: when the table cannot make a sentence; the message names the attribute.
    """

    subject: str
    attributes: tuple[Attribute, ...]

    def __post_init__(self) -> None:
        if not self.subject.strip() or not self.attributes:
            raise ValueError("a schema needs a subject and at least one attribute")
        twice = [name for name, count in Counter(one.name.lower() for one in self.attributes).items() if count > 1]
        if twice:
            raise ValueError(f"attribute names must differ, whatever their case; several are called {', '.join(twice)}")
        if sum(one.role == "noun" for one in self.attributes) > 1:
            raise ValueError("at most one attribute can have the role 'noun'")
        phrases = {one.name: one for one in self.attributes if one.role == "phrase"}
        for attribute in self.attributes:
            _check(attribute, phrases)

    def asked(self, *, number_plates: bool) -> "Schema":
        """Return the schema without number plates, unless `number_plates` is set."""
        kept = tuple(one for one in self.attributes if number_plates or not one.number_plate)
        return Schema(self.subject, kept)


def _check(attribute: Attribute, phrases: dict[str, Attribute]) -> None:
    name = f"attribute {attribute.name!r}"
    if not attribute.name.strip() or not attribute.meaning.strip():
        raise ValueError(f"{name} needs a name and a meaning")
    if len({option.lower() for option in attribute.options}) < len(attribute.options):
        raise ValueError(f"{name} must have different options; received {attribute.options}")
    if attribute.role == "phrase" and attribute.phrase.count("{}") != 1:
        raise ValueError(f"{name}: phrase must hold {{}} once, for the value; received {attribute.phrase!r}")
    if not attribute.of:
        return
    if attribute.role != "adjective" or attribute.of not in phrases:
        raise ValueError(f"{name}: of is for an adjective and names a phrase; received {attribute.of!r}")
    if not phrases[attribute.of].stand_in:
        raise ValueError(f"attribute {attribute.of!r} needs a stand_in, for when only its {attribute.name!r} is known")


PERSONS = Schema(
    "person",
    (
        Attribute("age", "apparent age", ("young", "middle-aged", "elderly"), role="adjective"),
        Attribute("build", "body shape", ("slim", "medium-built", "heavyset"), role="adjective"),
        Attribute("gender", "who it appears to be", ("man", "woman", "boy", "girl"), role="noun"),
        Attribute(
            "hair", "hair style", ("short hair", "shoulder-length hair", "long hair", "tied-back hair", "bald head")
        ),
        Attribute("headwear", "what is on the head", (NONE, "cap", "hat", "hood", "helmet", "headscarf")),
        Attribute("glasses", "what is before the eyes", (NONE, "glasses", "sunglasses")),
        Attribute("upper colour", "main colour of the upper garment", role="adjective", of="upper garment"),
        Attribute("upper garment", "outermost garment of the upper body", phrase="wearing {}", stand_in="top"),
        Attribute("lower colour", "main colour of the lower garment", role="adjective", of="lower garment"),
        Attribute("lower garment", "garment of the lower body", phrase="wearing {}", stand_in="bottoms"),
        Attribute("footwear", "shoes and their colour", phrase="wearing {}"),
        Attribute("bag", "bag that is worn or carried", phrase="carrying {}"),
        Attribute("object", "anything else in the hands, or a vehicle being pushed", phrase="holding {}"),
    ),
)

VEHICLES = Schema(
    "vehicle",
    (
        Attribute("colour", "main colour of the body", role="adjective"),
        Attribute("make", "make and model, without any number plate", role="adjective"),
        Attribute(
            "type",
            "body type",
            (
                "sedan",
                "hatchback",
                "estate car",
                "SUV",
                "MPV",
                "sports car",
                "pickup",
                "van",
                "minibus",
                "bus",
                "truck",
            ),
            role="noun",
        ),
        Attribute("roof", "what is special about the roof", (NONE, "sunroof", "roof rack", "roof box", "taxi sign")),
        Attribute("wheels", "rims or wheel covers"),
        Attribute("marks", "stickers, lettering, damage, decorations; no number plate"),
        Attribute("number plate", "its characters", phrase="with number plate {}", article=False, number_plate=True),
    ),
)

BUILT_IN = {"persons": PERSONS, "vehicles": VEHICLES}


def read_schema(source: str) -> Schema:
    """Return the schema of a name, or read it from a TOML or JSON file.

    Raises:
        FileNotFoundError: when the source is neither a known name nor a file.
        ValueError: when the file is not a schema; the message names file and attribute.
    """
    if source in BUILT_IN:
        return BUILT_IN[source]
    file = Path(source)
    if not file.is_file():
        raise FileNotFoundError(f"schema must be {', '.join(BUILT_IN)} or a .toml or .json file; received {source!r}")
    if file.suffix.lower() not in (".toml", ".json"):
        raise ValueError(f"schema must be a .toml or .json file; received {file}")
    parse = tomllib.loads if file.suffix.lower() == ".toml" else json.loads
    try:
        table = parse(file.read_text(encoding="utf-8"))
        if not isinstance(table, dict) or set(table) != {"subject", "attributes"}:
            raise ValueError("a schema has a subject and attributes, and nothing else")
        if not isinstance(table["subject"], str) or not is_bearable(table["attributes"], list[dict[str, Any]]):
            raise ValueError("subject must be text, and attributes a list of tables")
        return Schema(table["subject"], tuple(_read_attribute(entry) for entry in table["attributes"]))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _read_attribute(entry: dict[str, Any]) -> Attribute:
    name = f"attribute {entry.get('name', entry)!r}"
    known = {field.name: field for field in fields(Attribute)}
    if unknown := entry.keys() - known.keys():
        raise ValueError(f"{name} has unknown fields {', '.join(sorted(unknown))}; known fields are {', '.join(known)}")
    if lacking := [field.name for field in known.values() if field.default is MISSING and field.name not in entry]:
        raise ValueError(f"{name} needs {' and '.join(lacking)}")
    hints = get_type_hints(Attribute)
    values: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    for key, value in values.items():
        if not is_bearable(value, hints[key]):
            raise ValueError(f"{name}: {key} must be {hints[key]}; received {entry[key]!r}")
    return Attribute(**values)
