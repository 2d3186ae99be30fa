"""Choice of one value per attribute, and the sentence made from the chosen values.

Choice and sentence follow fixed rules, so that equal answers make equal sentences.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import NamedTuple

from examples.prepare.captions.answers import Reading
from examples.prepare.captions.schema import NONE, Attribute, Schema

MASS_NOUNS = {
    "hair",
    "clothing",
    "clothes",
    "luggage",
    "denim",
    "leather",
    "damage",
    "rust",
    "paint",
    "lettering",
    "text",
}


class Choice(NamedTuple):
    """Chosen value of an attribute, its confidence, and the view it comes from."""

    value: str
    confidence: float
    view: str


def choose(views: Mapping[str, Mapping[str, Reading]], *, min_confidence: float = 0.0) -> dict[str, Choice]:
    """Choose the most confident known value of each attribute.

    Confidences of views that agree are not added up. Between equal confidences the earlier view wins.

    Args:
        views: readings of each view, in order of preference.
        min_confidence: confidence in [0, 1] below which a value counts as unknown.

    Returns:
        One choice per attribute that some view knows.

    >>> rgb, thermal = {"colour": Reading("red", 0.9)}, {"colour": Reading(None, 1.0), "bag": Reading("backpack", 0.4)}
    >>> choose({"RGB": rgb, "TI": thermal})["colour"]
    Choice(value='red', confidence=0.9, view='RGB')
    """
    best: dict[str, Choice] = {}
    for view, readings in views.items():
        for name, (value, confidence) in readings.items():
            if value is None or confidence < min_confidence:
                continue
            if name not in best or confidence > best[name].confidence:
                best[name] = Choice(value, confidence, view)
    return best


def choose_apart(
    models: Sequence[Mapping[str, Mapping[str, Reading]]], modalities: Sequence[str], *, min_confidence: float = 0.5
) -> dict[str, dict[str, Choice]]:
    """Choose the value of each attribute for every modality: its own value if certain enough, else another view's.

    Of several models the most confident model counts in each view. Attributes that no view knows are left out.

    Args:
        models: readings of each view, by model; on a tie the earlier model and the earlier view win.
        modalities: views to describe.
        min_confidence: confidence in [0, 1] below which a value counts as unknown, in all views.

    Returns:
        Choices by attribute, for every modality.

    >>> rgb, thermal = {"colour": Reading("red", 0.9)}, {"colour": Reading("grey", 0.2), "bag": Reading("sack", 0.6)}
    >>> apart = choose_apart([{"RGB": rgb, "TI": thermal}], ("RGB", "TI"))
    >>> {name: [choice.value for choice in of_one.values()] for name, of_one in apart.items()}
    {'RGB': ['red', 'sack'], 'TI': ['sack', 'red']}
    """
    views = list(dict.fromkeys(view for model in models for view in model))
    merged: dict[str, dict[str, Reading]] = {}
    for view in views:
        answers = {str(number): model.get(view, {}) for number, model in enumerate(models)}
        best = choose(answers, min_confidence=min_confidence)
        merged[view] = {name: Reading(choice.value, choice.confidence) for name, choice in best.items()}
    apart = {}
    for modality in modalities:
        own = choose({modality: merged.get(modality, {})})
        others = choose({view: readings for view, readings in merged.items() if view != modality})
        apart[modality] = own | {name: choice for name, choice in others.items() if name not in own}
    return apart


def write_sentences(schema: Schema, values: Mapping[str, str]) -> str:
    """Write a short sentence per phrase, so that sentences can be drawn separately; "" when nothing is known.

    >>> from examples.prepare.captions.schema import PERSONS
    >>> write_sentences(PERSONS, {"gender": "woman", "age": "elderly", "upper colour": "red", "bag": "backpack"})
    'An elderly woman. A person wearing a red top. A person carrying a backpack.'
    """
    subject = {one.name for one in schema.attributes if one.role == "noun" or (one.role == "adjective" and not one.of)}
    parts = [{name: value for name, value in values.items() if name in subject}]
    for attribute in schema.attributes:
        if attribute.role == "phrase":
            names = {attribute.name, *(one.name for one in schema.attributes if one.of == attribute.name)}
            parts.append({name: value for name, value in values.items() if name in names})
    return " ".join(filter(None, (write_sentence(schema, part) for part in parts)))


def write_sentence(schema: Schema, values: Mapping[str, str]) -> str:
    """Write a sentence that states every known value and nothing else; "" when nothing is known.

    Args:
        schema: attributes, in the order of the sentence.
        values: known values by attribute; `none` is known and left out of the sentence.

    >>> from examples.prepare.captions.schema import PERSONS
    >>> write_sentence(PERSONS, {"gender": "woman", "age": "elderly", "upper colour": "red", "bag": "none"})
    'An elderly woman wearing a red top.'
    """
    said = {name: value for name, value in values.items() if value != NONE}
    if not any(attribute.name in said for attribute in schema.attributes):
        return ""
    noun = next(
        (said[one.name] for one in schema.attributes if one.role == "noun" and one.name in said), schema.subject
    )
    clauses = _clauses(schema, said)
    beginning = " ".join([with_article(_described(schema, "", noun, said)), *clauses[:1]])
    sentence = ", ".join([beginning, *clauses[1:]])
    return sentence[0].upper() + sentence[1:] + "."


def _clauses(schema: Schema, said: Mapping[str, str]) -> list[str]:
    """Return the phrases after the subject; adjacent phrases with equal words around the value are joined."""
    filled: list[tuple[str, str]] = []
    for attribute in schema.attributes:
        if attribute.role == "phrase" and (value := _value(schema, attribute, said)):
            filled.append((attribute.phrase, value))
    groups = groupby(filled, key=lambda pair: pair[0])
    return [phrase.replace("{}", _enumerate([value for _, value in pairs])) for phrase, pairs in groups]


def _value(schema: Schema, attribute: Attribute, said: Mapping[str, str]) -> str:
    adjectives = [one.name for one in schema.attributes if one.of == attribute.name and one.name in said]
    noun = said.get(attribute.name, attribute.stand_in if adjectives else "")
    if not noun:
        return ""
    described = _described(schema, attribute.name, noun, said)
    return with_article(described) if attribute.article else described


def _described(schema: Schema, of: str, noun: str, said: Mapping[str, str]) -> str:
    """Put the adjectives before a noun; an adjective that the noun repeats is left out."""
    words = noun.lower().split()
    adjectives = [
        said[one.name]
        for one in schema.attributes
        if one.role == "adjective" and one.of == of and one.name in said
        if not set(said[one.name].lower().split()) <= set(words)
    ]
    return " ".join([*adjectives, noun])


def _enumerate(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def with_article(noun: str) -> str:
    """Put "a" or "an" before a noun that takes it.

    >>> [with_article(noun) for noun in ("SUV", "umbrella", "uniform", "jeans", "dress with dots", "short hair")]
    ['an SUV', 'an umbrella', 'a uniform', 'jeans', 'a dress with dots', 'short hair']
    """
    head = re.split(r" (?:with|of|in|on|at|from|for)\b", noun)[0].split()[-1].lower()
    plural = head.endswith("s") and not head.endswith(("ss", "us", "is"))
    if plural or head in MASS_NOUNS:
        return noun
    return ("an " if _sounds_like_vowel(noun.split()[0]) else "a ") + noun


def _sounds_like_vowel(word: str) -> bool:
    if word.isupper():  # read letter by letter: an SUV, a GPS
        return word[0] in "AEFHILMNORSX"
    return (
        re.match(r"(?!uni|use|usu|eu|one\b|once)[aeiou]|hour|honest|heir|8|11\b|18\b", word, re.IGNORECASE) is not None
    )
