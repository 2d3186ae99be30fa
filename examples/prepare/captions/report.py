"""Report of a run: known and agreed attributes, costs, and lengths of the sentences."""

import importlib.util
import itertools
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from examples.optional import import_library
from examples.prepare.captions.answers import Reading
from examples.prepare.captions.collect import Outcome
from examples.prepare.captions.journal import Journal
from examples.prepare.captions.questions import COMPOSITE
from examples.prepare.captions.schema import Schema
from examples.prepare.captions.sentence import Choice
from stmi_layers.training.record import Item

CLIP_TOKENS = 77  # tokens that CLIP's text towers read, including the start and end tokens


class Described(NamedTuple):
    """Item with the outcomes of its views, the chosen values and the sentence made from them."""

    item: Item
    outcomes: dict[str, Outcome]
    choices: dict[str, Choice]
    sentence: str

    @property
    def finished(self) -> bool:
        """Tell whether all questions about the item are answered."""
        return all(outcome.status != "open" for outcome in self.outcomes.values())


def make_report(
    described: Sequence[Described], schema: Schema, journal: Journal, *, input_price: float, output_price: float
) -> dict[str, Any]:
    """Collect the report as plain values. Shares are in [0, 1]; None if there is nothing to count.

    Args:
        described: items of the run.
        schema: attributes of the questions.
        journal: journal with the counts of answers, tokens and failures.
        input_price: price of a million tokens read.
        output_price: price of a million tokens written.
    """
    finished = [one for one in described if one.finished]
    views = dict.fromkeys(view for one in described for view in one.outcomes)
    views = sorted(views, key=lambda view: view == COMPOSITE)  # stable: the modalities keep their order
    spent = journal.spent
    cost = round((spent["prompt tokens"] * input_price + spent["completion tokens"] * output_price) / 1e6, 6)
    priced = input_price > 0 or output_price > 0
    return {
        "items": len(described),
        "captions": sum(one.sentence != "" for one in finished),
        "without any known attribute": [one.item.name for one in finished if not one.sentence],
        "with open questions": [one.item.name for one in described if not one.finished],
        "unknown in the caption": _unknown([one.choices for one in finished], schema),
        "views": {view: _view(view, described, schema) for view in views},
        "attributes": {one.name: _attribute(one.name, views, described, finished) for one in schema.attributes},
        "length": _lengths([one.sentence for one in finished if one.sentence]),
        "requests": {
            **spent,
            "failed attempts": dict(sorted(journal.failures.items())),
            "cost": cost if priced else None,
        },
        "refused": _named(described, "refused"),
        "invalid": _named(described, "invalid"),
        "partial": _named(described, "partial"),
    }


def _view(view: str, described: Sequence[Described], schema: Schema) -> dict[str, Any]:
    outcomes = [one.outcomes[view] for one in described if view in one.outcomes]
    answered = [_known(outcome) for outcome in outcomes if outcome.status != "open"]
    won = [choice.view == view for one in described for choice in one.choices.values()]
    statuses = Counter(outcome.status for outcome in outcomes)
    return {
        "questions": len(outcomes),
        **{status: statuses[status] for status in ("complete", "partial", "invalid", "refused", "open")},
        "repaired": sum(outcome.repaired for outcome in outcomes),
        "possible number plates withheld": sum(outcome.withheld for outcome in outcomes),
        "unknown": _unknown(answered, schema),
        "confidence": _mean([reading.confidence for known in answered for reading in known.values()]),
        "agreement with other views": _mean(
            [same for one in described for pair, same in _comparisons(one.outcomes) if view in pair[1:]]
        ),
        "share of the values that won": _mean(won),
    }


def _known(outcome: Outcome) -> dict[str, Reading]:
    return {name: reading for name, reading in outcome.readings.items() if reading.value is not None}


def _comparisons(outcomes: Mapping[str, Outcome]) -> Iterator[tuple[tuple[str, str, str], bool]]:
    """Yield attribute and two views that both know its value, and whether the values are equal, ignoring case."""
    known = {view: _known(outcome) for view, outcome in outcomes.items()}
    for first, second in itertools.combinations(known, 2):
        for name in known[first].keys() & known[second].keys():
            values = {str(known[view][name].value).casefold() for view in (first, second)}
            yield (name, first, second), len(values) == 1


def _unknown(known: Sequence[Mapping[str, object]], schema: Schema) -> float | None:
    """Return the share of unknown attributes; a refused or invalid answer knows no attribute."""
    return _mean([attribute.name not in one for one in known for attribute in schema.attributes])


def _attribute(
    name: str, views: Sequence[str], described: Sequence[Described], finished: Sequence[Described]
) -> dict[str, Any]:
    def unknown_in(view: str) -> float | None:
        outcomes = [one.outcomes[view] for one in described if view in one.outcomes]
        return _mean([name not in _known(outcome) for outcome in outcomes if outcome.status != "open"])

    values = Counter(one.choices[name].value for one in finished if name in one.choices)
    return {
        "unknown": {view: unknown_in(view) for view in views}
        | {"caption": _mean([name not in one.choices for one in finished])},
        "agreement": _mean([same for one in described for pair, same in _comparisons(one.outcomes) if pair[0] == name]),
        "commonest values": dict(values.most_common(5)),
    }


def _lengths(sentences: Sequence[str]) -> dict[str, Any]:
    counted_by, count = token_counter()
    tokens = [count(sentence) for sentence in sentences]
    words = [len(sentence.split()) for sentence in sentences]
    return {
        "mean words": _mean(words),
        "mean characters": _mean([len(sentence) for sentence in sentences]),
        "mean tokens": _mean(tokens),
        "longest in tokens": max(tokens, default=0),
        f"over {CLIP_TOKENS} tokens": sum(number > CLIP_TOKENS for number in tokens),
        "tokens counted by": counted_by,
    }


def token_counter() -> tuple[str, Callable[[str], int]]:
    """Return name and function of a token counter: CLIP's tokenizer if open_clip is installed, else an estimate."""
    if importlib.util.find_spec("open_clip") is None:
        return (
            "an estimate: four tokens for three words, and two",
            lambda text: math.ceil(len(text.split()) * 4 / 3) + 2,
        )
    tokenizer = import_library("open_clip", "clip").tokenizer.SimpleTokenizer()
    return "open_clip", lambda text: len(tokenizer.encode(text)) + 2


def _named(described: Sequence[Described], status: str) -> list[dict[str, Any]]:
    return [
        {"item": one.item.name, "view": view, "why": outcome.problems}
        for one in described
        for view, outcome in one.outcomes.items()
        if outcome.status == status
    ]


def _mean(values: Sequence[float]) -> float | None:
    return round(statistics.fmean(values), 4) if values else None


def as_markdown(report: Mapping[str, Any], title: str) -> str:
    """Format the report as Markdown: two tables, the lengths and the cost."""
    views: dict[str, dict[str, Any]] = report["views"]
    measures = next(iter(views.values()), {})
    rows = [[measure, *(view[measure] for view in views.values())] for measure in measures]
    attributes = [
        [name, *entry["unknown"].values(), entry["agreement"]] for name, entry in report["attributes"].items()
    ]
    lists = ("without any known attribute", "with open questions", "refused", "invalid", "partial")
    lines = [
        f"# {title}",
        "",
        f"{report['captions']} captions of {report['items']} items; {_shown(report['unknown in the caption'])} of "
        "their attributes are unknown.",
        "",
        *_table(["view", *views], rows),
        "",
        *_table(["share unknown", *views, "caption", "agreement"], attributes),
        "",
        *(f"- {name}: {_shown(value)}" for name, value in report["length"].items()),
        *(f"- {name}: {_shown(value)}" for name, value in report["requests"].items()),
        *(f"- {name}: {len(report[name])}" for name in lists),
    ]
    return "\n".join(lines) + "\n"


def _table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    lines = [header, ["---"] * len(header), *([_shown(cell) for cell in row] for row in rows)]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _shown(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return ", ".join(f"{name} {count}" for name, count in value.items()) or "none"
    return f"{value:.3g}" if isinstance(value, float) else str(value)
