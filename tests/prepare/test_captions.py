"""Captions without a server: tables of attributes, parsed answers, the choice of a value, and the sentence."""

import doctest
import importlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from examples.prepare.captions.answers import MAX_WORDS, Reading, answer_schema, is_plate, normalise, parse_answer
from examples.prepare.captions.questions import (
    GAP,
    ask_about,
    compose,
    write_correction,
    write_prompt,
)
from examples.prepare.captions.report import token_counter
from examples.prepare.captions.schema import NONE, PERSONS, VEHICLES, Attribute, Schema, read_schema
from examples.prepare.captions.sentence import Choice, choose, choose_apart, write_sentence, write_sentences
from stmi_layers.training.record import Item, Panel

NO_PLATES = VEHICLES.asked(number_plates=False)
WORDS = st.text("abdegilmorstu", min_size=2, max_size=7).filter(lambda word: normalise(word) == word)
UNKNOWNS = ["unknown", "Unclear", "not visible", "cannot tell", "can't be determined", "N/A", "", "?", "unknown brand"]


def values_of(attribute: Attribute) -> st.SearchStrategy[str]:
    return st.sampled_from(attribute.options) if attribute.options else WORDS | st.just(NONE)


@st.composite
def known_values(draw: st.DrawFn, schema: Schema) -> dict[str, str]:
    named = {attribute.name: values_of(attribute) for attribute in schema.attributes}
    return draw(st.fixed_dictionaries({}, optional=named))


def entries(**values: dict[str, object]) -> str:
    """An answer to `PARCEL`."""
    return json.dumps({"attributes": [{"attribute": name, **entry} for name, entry in values.items()]})


PARCEL = Schema(
    "parcel",
    (
        Attribute("colour", "main colour", role="adjective"),
        Attribute("size", "how large", ("small", "large"), role="adjective"),
    ),
)
GOOD = {"colour": {"value": "brown", "confidence": 0.5}, "size": {"value": "small", "confidence": 1}}


@pytest.mark.parametrize("name", ["answers", "endpoint", "schema", "sentence"])
def test_examples_in_the_docstrings(name):
    result = doctest.testmod(importlib.import_module(f"examples.prepare.captions.{name}"))
    assert result.failed == 0
    assert result.attempted > 0 or name == "schema"


# Tables of attributes


def test_as_many_attributes_as_in_the_paper():
    assert len(PERSONS.asked(number_plates=False).attributes) == 13
    assert len(NO_PLATES.attributes) == 6
    assert [one.name for one in VEHICLES.attributes if one not in NO_PLATES.attributes] == ["number plate"]
    assert "number plate:" in write_prompt(VEHICLES, ["RGB"])
    assert "number plate:" not in write_prompt(NO_PLATES, ["RGB"])
    assert "Never write down a number plate" in write_prompt(NO_PLATES, ["RGB"])


def test_a_table_of_ones_own_from_the_docstring(tmp_path: Path):
    from examples.prepare.captions import schema

    file = tmp_path / "parcels.toml"
    text = re.findall(r"^    (.*)$|^$", schema.__doc__ or "", re.MULTILINE)
    file.write_text("\n".join(text))
    parcels = read_schema(str(file))
    assert [one.name for one in parcels.attributes] == ["colour", "label"]
    assert write_sentence(parcels, {"colour": "brown", "label": "barcode"}) == "A brown parcel with a barcode."
    same = {
        "subject": "parcel",
        "attributes": [
            {"name": "colour", "meaning": "main colour of the box", "role": "adjective"},
            {
                "name": "label",
                "meaning": "what is printed or stuck on it",
                "options": ["none", "barcode", "address label"],
                "phrase": "with {}",
            },
        ],
    }
    (tmp_path / "parcels.json").write_text(json.dumps(same))
    assert read_schema(str(tmp_path / "parcels.json")) == parcels


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"subject": "parcel"}, "has a subject and attributes"),
        ({"subject": 1, "attributes": []}, "subject must be text"),
        ({"subject": "parcel", "attributes": []}, "at least one attribute"),
        ({"subject": "parcel", "attributes": [{"name": "colour"}]}, "'colour' needs meaning"),
        ({"subject": "parcel", "attributes": [{"meaning": "m"}]}, "needs name"),
        ({"subject": "p", "attributes": [{"name": "a", "meaning": "m", "colour": 1}]}, "unknown fields colour"),
        ({"subject": "p", "attributes": [{"name": "a", "meaning": "m", "options": "bcd"}]}, "options must be tuple"),
        ({"subject": "p", "attributes": [{"name": "a", "meaning": "m", "role": "verb"}]}, "role must be .*verb"),
        ({"subject": "p", "attributes": [{"name": "a", "meaning": "m", "phrase": "with"}]}, r"must hold \{\} once"),
        ({"subject": "p", "attributes": [{"name": "a", "meaning": " "}]}, "needs a name and a meaning"),
        ({"subject": "p", "attributes": [{"name": "a", "meaning": "m", "options": ["b", "B"]}]}, "different options"),
        ({"subject": "p", "attributes": [{"name": "a", "meaning": "m"}, {"name": "A", "meaning": "m"}]}, "called a"),
        ({"subject": "p", "attributes": [{"name": n, "meaning": "m", "role": "noun"} for n in "ab"]}, "at most one"),
        (
            {"subject": "p", "attributes": [{"name": "a", "meaning": "m", "role": "adjective", "of": "b"}]},
            "names a phrase; received 'b'",
        ),
        (
            {
                "subject": "p",
                "attributes": [
                    {"name": "a", "meaning": "m", "role": "adjective", "of": "b"},
                    {"name": "b", "meaning": "m"},
                ],
            },
            "'b' needs a stand_in",
        ),
    ],
)
def test_a_wrong_table_is_named(tmp_path: Path, table: object, message: str):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(table))
    with pytest.raises(ValueError, match=message) as caught:
        read_schema(str(file))
    assert str(file) in str(caught.value)


def test_a_file_that_is_no_table_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"persons, vehicles or a .toml or .json file; received 'people'"):
        read_schema("people")
    for name, message in {"a.toml": "a.toml: ", "a.json": "a.json: ", "a.yaml": "must be a .toml or .json"}.items():
        (tmp_path / name).write_text("= {")
        with pytest.raises(ValueError, match=message):
            read_schema(str(tmp_path / name))


# What an answer says


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not JSON"),
        ("A red car.", "is not JSON"),
        ('{"attributes": [', "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is not an object with a list"),
        ('{"attributes": {}}', "is not an object with a list"),
        ('{"attributes": ["red"]}', "entry 0 names no attribute that was asked"),
        (entries(colour=GOOD["colour"]), "'size' is missing"),
        (entries(**GOOD, weight={"value": "1 kg", "confidence": 1}), "entry 2 names no attribute that was asked"),
        (entries(colour=GOOD["colour"], size={"value": "medium", "confidence": 1}), "needs one of small, large"),
        (entries(colour=GOOD["colour"], size={"value": 3, "confidence": 1}), "needs text or null as value, not 3"),
        (entries(colour=GOOD["colour"], size={"confidence": 1}), "needs text or null as value"),
        (entries(colour=GOOD["colour"], size={"value": "small"}), "needs a number as confidence, not null"),
        (entries(colour=GOOD["colour"], size={"value": "small", "confidence": "high"}), 'confidence, not "high"'),
        (entries(colour=GOOD["colour"], size={"value": "small", "confidence": True}), "confidence, not true"),
        (entries(colour=GOOD["colour"], size={"value": "small", "confidence": 90}), "between 0 and 1, not 90"),
        (entries(colour=GOOD["colour"], size={"value": "small", "confidence": float("nan")}), "between 0 and 1"),
        (entries(colour={"value": "red " * 7, "confidence": 1}, size=GOOD["size"]), f"at most {MAX_WORDS} words"),
        (
            '{"attributes": [{"attribute": "colour", "value": "red", "confidence": 1},'
            '{"attribute": "colour", "value": "blue", "confidence": 1},'
            '{"attribute": "size", "value": "small", "confidence": 1}]}',
            "'colour' is there more than once",
        ),
    ],
)
def test_a_wrong_answer_is_named_and_the_rest_of_it_is_kept(text: str, problem: str):
    readings, problems, _ = parse_answer(text, PARCEL)
    assert problem in problems[0]
    assert all(one in write_correction(problems, cut=False) for one in problems)
    assert readings.items() <= {"colour": Reading("brown", 0.5), "size": Reading("small", 1.0)}.items()


def test_fences_capitals_and_spaces_are_no_mistakes():
    text = (
        "Here you are:\n```json\n"
        + entries(
            Colour={"value": " A Dark  Red. ", "confidence": 1}, SIZE={"value": "Large", "confidence": 0}
        ).replace('"SIZE"', '" size "')
        + "\n```"
    )
    assert parse_answer(text, PARCEL) == ({"colour": Reading("Dark Red", 1.0), "size": Reading("large", 0.0)}, [], 0)


@pytest.mark.parametrize("value", [None, *UNKNOWNS])
def test_unknown_in_many_words(value: str | None):
    text = entries(colour={"value": value, "confidence": 1}, size={"value": value, "confidence": 0.2})
    readings, problems, _ = parse_answer(text, PARCEL)
    assert readings == {"colour": Reading(None, 1.0), "size": Reading(None, 0.2)}
    assert problems == []


@given(st.text() | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(json.dumps))
def test_no_text_breaks_the_reader(text: str):
    readings, problems, _ = parse_answer(text, PARCEL)
    assert problems
    assert readings == {}


def test_number_plates_are_withheld_wherever_they_are():
    value = {"value": "sticker AB-123-CD", "confidence": 1}
    readings, problems, withheld = parse_answer(entries(colour=value, size=GOOD["size"]), PARCEL)
    assert (readings["colour"], problems, withheld) == (Reading(None, 0.0), [], 1)
    allowed = parse_answer(entries(colour=value, size=GOOD["size"]), PARCEL, number_plates=True)
    assert allowed == ({"colour": Reading("sticker AB-123-CD", 1.0), "size": Reading("small", 1.0)}, [], 0)


@given(st.from_regex(r"[A-Z]{1,3}[ -]?[0-9]{3,4}[ -]?[A-Z]{1,2}", fullmatch=True), WORDS)
def test_what_is_built_like_a_number_plate_is_taken_for_one(plate: str, word: str):
    assert is_plate(plate)
    assert is_plate(f"{word} {plate}")
    assert not is_plate(word)


def test_the_schema_for_servers_is_closed_and_names_every_attribute():
    fastjsonschema = pytest.importorskip("fastjsonschema")  # an independent reader of JSON schemas
    check = fastjsonschema.compile(answer_schema(PARCEL))
    check(json.loads(entries(**GOOD)))
    for wrong in ('{"attributes": [], "more": 1}', entries(weight=GOOD["colour"]), entries(colour={"value": "red"})):
        with pytest.raises(fastjsonschema.JsonSchemaException):
            check(json.loads(wrong))


# Which value wins

readings = st.dictionaries(
    st.sampled_from(["colour", "size"]),
    st.builds(Reading, st.none() | WORDS, st.sampled_from([0.0, 0.25, 0.5, 1.0])),
)


@given(st.dictionaries(st.sampled_from(["composite", "RGB", "NI", "TI"]), readings), st.sampled_from([0.0, 0.5]))
def test_the_most_confident_known_value_wins_and_the_earlier_view_on_ties(views, least):
    chosen = choose(views, min_confidence=least)
    for name in ("colour", "size"):
        known = [
            Choice(view[name].value, view[name].confidence, place)
            for place, view in views.items()
            if name in view and view[name].value is not None and view[name].confidence >= least
        ]
        if not known:
            assert name not in chosen
            continue
        highest = max(one.confidence for one in known)
        assert chosen[name] == next(one for one in known if one.confidence == highest)


views_of_a_model = st.dictionaries(st.sampled_from(["composite", "RGB", "NI", "TI"]), readings)


@given(st.lists(views_of_a_model, max_size=2), st.sampled_from([0.25, 0.5]))
def test_a_modality_keeps_what_it_is_certain_of_and_borrows_the_rest(models, least):
    apart = choose_apart(models, ("RGB", "TI"), min_confidence=least)
    assert list(apart) == ["RGB", "TI"]

    def known(name: str, *, of: set[str]) -> list[Reading]:
        found = [view[name] for model in models for place, view in model.items() if place in of and name in view]
        return [reading for reading in found if reading.value is not None and reading.confidence >= least]

    for modality, chosen in apart.items():
        for name in ("colour", "size"):
            own = known(name, of={modality})
            borrowed = known(name, of={"composite", "RGB", "NI", "TI"} - {modality})
            if not own and not borrowed:
                assert name not in chosen
                continue
            choice = chosen[name]
            assert choice.confidence == max(reading.confidence for reading in own or borrowed)
            assert (choice.view == modality) == bool(own)
            assert Reading(choice.value, choice.confidence) in (own or borrowed)


def test_of_two_models_the_more_certain_one_speaks_for_a_view():
    first, second = {"RGB": {"colour": Reading("red", 0.6)}}, {"RGB": {"colour": Reading("blue", 0.7)}}
    assert choose_apart([first, second], ("RGB",))["RGB"] == {"colour": Choice("blue", 0.7, "RGB")}
    assert choose_apart([first, second], ("RGB",), min_confidence=0.8) == {"RGB": {}}


def test_short_sentences_say_what_the_long_one_says():
    values = {"gender": "man", "age": "young", "hair": "short hair", "upper colour": "red", "lower garment": "jeans"}
    values |= {"headwear": "none", "bag": "backpack"}
    expected = "A young man. A person with short hair. A person wearing a red top. A person wearing jeans. "
    assert write_sentences(PERSONS, values) == expected + "A person carrying a backpack."
    assert write_sentences(PERSONS, {"headwear": "none"}) == write_sentences(PERSONS, {}) == ""


@given(st.dictionaries(st.sampled_from(["composite", "RGB", "NI"]), readings), readings)
def test_a_view_that_knows_nothing_changes_nothing(views, other):
    blind = {name: Reading(None, confidence) for name, (_, confidence) in other.items()}
    assert choose({"TI": blind, **views}) == choose(views)


# The sentence


@pytest.mark.parametrize(
    ("schema", "values", "sentence"),
    [
        (PERSONS, {}, ""),
        (PERSONS, {"bag": NONE}, ""),
        (PERSONS, {"gender": "girl"}, "A girl."),
        (PERSONS, {"build": "slim", "object": "umbrella"}, "A slim person holding an umbrella."),
        (PERSONS, {"upper garment": "black jacket", "upper colour": "Black"}, "A person wearing a black jacket."),
        (PERSONS, {"lower colour": "blue"}, "A person wearing blue bottoms."),
        (
            PERSONS,
            {
                "age": "elderly",
                "gender": "man",
                "hair": "short hair",
                "headwear": "cap",
                "glasses": "glasses",
                "upper colour": "red",
                "upper garment": "jacket",
                "lower garment": "jeans",
                "footwear": "white trainers",
                "bag": "backpack",
            },
            "An elderly man with short hair, a cap and glasses, wearing a red jacket, jeans and white trainers, "
            "carrying a backpack.",
        ),
        (VEHICLES, {"colour": "white", "type": "SUV"}, "A white SUV."),
        (VEHICLES, {"type": "SUV"}, "An SUV."),
        (
            VEHICLES,
            {"colour": "orange", "make": "Fiat 500", "roof": "sunroof", "wheels": "steel rims", "number plate": "X 1"},
            "An orange Fiat 500 vehicle with a sunroof and steel rims, with number plate X 1.",
        ),
    ],
)
def test_sentences(schema: Schema, values: dict[str, str], sentence: str):
    assert write_sentence(schema, values) == sentence


@pytest.mark.parametrize("schema", [PERSONS, VEHICLES, PARCEL], ids=["persons", "vehicles", "parcel"])
@given(st.data())
def test_a_sentence_says_what_is_known_and_nothing_else(schema: Schema, data: st.DataObject):
    values = data.draw(known_values(schema))
    sentence = write_sentence(schema, values)
    assert sentence == write_sentence(schema, dict(reversed(values.items())))
    if set(values.values()) <= {NONE}:
        assert sentence == ""
        return
    assert re.fullmatch(r"An? \S.*[^ ,]\.", sentence)
    assert not re.search(r"\b(?:unknown|none|None|null|and and|an? an?)\b|[{}]|  | ,|,,|\.\.", sentence)
    garment_words = " ".join(values.values()).lower()
    for value in values.values():
        assert value == NONE or value.lower() in sentence.lower() or garment_words.count(value.lower()) > 1
    for attribute in schema.attributes:
        if attribute.role == "phrase" and attribute.options and attribute.name not in values:
            said = set(attribute.options) - set(values.values())
            assert not any(re.search(rf"\b{re.escape(option)}\b", sentence) for option in said if " " in option)


UNKNOWN_WORDS = re.compile(r"unknown|unclear|visible|determined|tell|n/a|\?", re.IGNORECASE)


@pytest.mark.parametrize("schema", [PERSONS, NO_PLATES], ids=["persons", "vehicles"])
@given(st.data())
def test_unknown_values_never_reach_the_sentence(schema: Schema, data: st.DataObject):
    """From the raw answers of two views to the sentence; a known value holds no word of the unknown ones."""

    def is_known(value: str) -> bool:
        return not UNKNOWN_WORDS.search(value)

    views = {}
    for view in ("composite", "RGB"):
        answer = [
            {
                "attribute": one.name,
                "value": data.draw(st.none() | st.sampled_from(UNKNOWNS) | values_of(one).filter(is_known)),
                "confidence": data.draw(st.floats(0, 1)),
            }
            for one in schema.attributes
        ]
        views[view], problems, _ = parse_answer(json.dumps({"attributes": answer}), schema)
        assert problems == []
    chosen = {name: choice.value for name, choice in choose(views).items()}
    sentence = write_sentence(schema, chosen)
    assert not UNKNOWN_WORDS.search(sentence)
    assert sentence == write_sentence(schema, chosen)


# What is shown


@pytest.fixture
def images(tmp_path: Path) -> tuple[Path, ...]:
    """Red, green and grey, of different sizes and modes."""
    kinds = {"RGB": ("RGB", (20, 40), (255, 0, 0)), "NI": ("RGB", (40, 40), (0, 255, 0)), "TI": ("L", (10, 40), 99)}
    for name, (mode, size, colour) in kinds.items():
        Image.new(mode, size, colour).save(tmp_path / f"{name}.png")
    return tuple(tmp_path / f"{name}.png" for name in kinds)


def test_the_composite_shows_all_modalities_from_left_to_right(images):
    composite = np.array(compose(images, height=80))
    edges = np.cumsum([40, GAP, 80, GAP, 20])
    assert composite.shape == (80, edges[-1], 3)
    parts = np.split(composite, edges[:-1], axis=1)
    colours = [(255, 0, 0), (255, 255, 255), (0, 255, 0), (255, 255, 255), (99, 99, 99)]
    assert all((part == colour).all() for part, colour in zip(parts, colours, strict=True))


def item_of(images) -> Item:
    return Item("000001_cam1_0_00", 1, tuple(images), (None,) * len(images), camera=1)


def test_every_modality_is_asked_about_alone_and_then_all_together(images):
    ask = {"model": "m", "height": 64}
    modalities = ("RGB", "NI", "TI")
    questions = ask_about(item_of(images), modalities, PARCEL, **ask)
    assert [question.view for question in questions] == [*modalities, "composite"]
    assert questions[3].images == images
    assert "from left to right: RGB (visible light, in colour); NI (near infrared" in questions[3].prompt
    for question in questions:
        assert all(f"- {one.name}: {one.meaning}" in question.prompt for one in PARCEL.attributes)
    without = ask_about(item_of([images[0], None, images[2]]), modalities, PARCEL, **ask)
    assert [question.view for question in without] == ["RGB", "TI", "composite"]
    assert "near infrared" not in without[2].prompt
    alone = ask_about(item_of([None, images[1], None]), modalities, PARCEL, **ask)
    assert [question.view for question in alone] == ["NI"]
    with pytest.raises(ValueError, match="a modality cannot be called 'composite'"):
        ask_about(item_of(images[:1]), ("composite",), PARCEL, **ask)


def test_equal_keys_are_equal_questions(images, tmp_path):
    def keys(images, schema=PARCEL, model="m", height=64):
        modalities = ("RGB", "NI", "TI")
        return [question.key for question in ask_about(item_of(images), modalities, schema, model=model, height=height)]

    first = keys(images)
    assert keys(images) == first
    assert len(set(first)) == 4
    for other in (keys(images, model="n"), keys(images, height=65), keys(images, schema=PERSONS)):
        assert set(other).isdisjoint(first)
    Image.new("RGB", (20, 40), (254, 0, 0)).save(images[0])
    changed = keys(images)
    assert [one == other for one, other in zip(first, changed, strict=True)] == [False, True, True, False]


def test_panels_of_one_file_are_different_images(tmp_path):
    sheet = Image.new("RGB", (3 * 256, 128))
    for index, colour in enumerate(("red", "lime", "blue")):
        sheet.paste(colour, (index * 256, 0, (index + 1) * 256, 128))
    sheet.save(tmp_path / "sheet.png")
    panels = [Panel(tmp_path / "sheet.png", index, 3) for index in range(3)]
    composite = np.array(compose(panels, height=64))
    assert [tuple(composite[5, x]) for x in (5, 128 + GAP + 5, 256 + 2 * GAP + 5)] == [
        (255, 0, 0),
        (0, 255, 0),
        (0, 0, 255),
    ]
    questions = ask_about(item_of(panels), ("RGB", "NI", "TI"), PARCEL, model="m", height=64)
    assert len({question.key for question in questions}) == 4


# The length


def test_tokens_by_open_clip_and_by_estimate(monkeypatch):
    import open_clip

    sentence = "An elderly man with short hair, wearing a red jacket."
    name, count = token_counter()
    ids = open_clip.tokenize([sentence])[0]
    assert (name, count(sentence)) == ("open_clip", int((ids != 0).sum()))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    name, estimate = token_counter()
    assert name.startswith("an estimate")
    assert abs(estimate(sentence) - count(sentence)) <= 3
