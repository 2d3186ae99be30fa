"""Comparisons that a method offers: rows, each a variant of the settings, and presets, each a question they answer.

`variants.py` of a method holds `VARIANTS`, settings by the name of a variant; `PRESETS` by name; and `COLUMNS`, what
its tables show beside the scores, by the name of the column.
"""

import statistics
from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

# Content of metrics.json.
Result = dict[str, Any]

SCORES = ("mAP", "R1", "R5", "R10")
TIMED_SCORES = (*SCORES, "CPU minutes")


class Column(NamedTuple):
    """A number of a run, and the digits it is shown with; a run that lacks it raises KeyError or TypeError."""

    value: Callable[[Result], float]
    digits: int = 1


class Row(NamedTuple):
    """Line of a table: a variant, as it is or under other conditions at test time.

    Attributes:
        label: first cell.
        variant: name of a variant.
        masks: masks of the test images, "" for those of the training.
        keep: modalities that are there at test time, () for all.
        groups: column by whose values the queries are scored apart as well, "" for none.
    """

    label: str
    variant: str
    masks: str = ""
    keep: tuple[str, ...] = ()
    groups: str = ""

    @property
    def is_condition(self) -> bool:
        """Tell whether the row needs scores beside those of the run itself."""
        return bool(self.masks or self.keep or self.groups)


class Preset(NamedTuple):
    """A question, the rows that answer it, and what the table and the panels of the figure show of them.

    Attributes:
        title: of the figure.
        asks: the question.
        rows: variants, or under `subsets` the one variant that is tested.
        columns: what the table shows.
        panels: what each panel of the figure shows.
        axis: name of the first column, and of the axis of the figure.
        sweep: the labels are numbers: lines instead of bars.
        subsets: a row per subset of the modalities, the largest first.
    """

    title: str
    asks: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...] = SCORES
    panels: tuple[tuple[str, ...], ...] = (("mAP",),)
    axis: str = "variant"
    sweep: bool = False
    subsets: bool = False

    def rows_of(self, modalities: tuple[str, ...]) -> tuple[Row, ...]:
        """The rows for a set with these modalities."""
        if not self.subsets:
            return self.rows
        sizes = range(len(modalities), 0, -1)
        subsets = [subset for size in sizes for subset in combinations(modalities, size)]
        return tuple(row._replace(label=" + ".join(subset), keep=subset) for row in self.rows for subset in subsets)


def watched(name: str, *, percent: bool = False, digits: int = 1) -> Column:
    """The mean of what a model watches under `name` or `name/...`, without zeros: blocks that take no part have 0."""

    def value(run: Result) -> float:
        numbers = [number for key, number in run["watch"].items() if key == name or key.startswith(f"{name}/")]
        return (100 if percent else 1) * (statistics.mean(filter(None, numbers)) if any(numbers) else numbers[0])

    return Column(value, digits)


# What methods share: the columns of the strengths of SFM, and presets.
STRENGTHS = {"alpha": watched("alpha", digits=2), "beta": watched("beta", digits=2)}

SFM = Preset(
    "Masks",
    "Does SFM help the tower of another method?",
    (Row("plain attention", "full"), Row("SFM", "full+sfm")),
    (*TIMED_SCORES, *STRENGTHS),
)
"""For methods with a variant "full+sfm" and the columns `STRENGTHS`."""

MISSING = Preset(
    "Missing modalities",
    "How well does the full model retrieve when modalities are missing at test time only?",
    (Row("", "full"),),
    axis="there at test time",
    subsets=True,
)
