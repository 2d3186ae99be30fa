"""Comparisons that a method offers: variants of its settings, and presets, which are questions with rows of variants.

`variants.py` of a method holds `VARIANTS`, settings by name of the variant; `PRESETS` by name; and `COLUMNS`, columns
of its tables besides the scores, by name.
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
    """Column of a table: a number of a run, and its digits; raises KeyError or TypeError if a run lacks the number."""

    value: Callable[[Result], float]
    digits: int = 1


class Row(NamedTuple):
    """Line of a table: a variant, as it is or under other conditions at test time.

    Attributes:
        label: first cell of the line.
        variant: name of a variant.
        masks: masks of the test images; "" takes those of the training.
        keep: modalities that are present at test time; () keeps all.
        groups: column by whose values queries are also scored separately; "" for none.
    """

    label: str
    variant: str
    masks: str = ""
    keep: tuple[str, ...] = ()
    groups: str = ""

    @property
    def is_condition(self) -> bool:
        """Tell whether the row needs other scores than those of the run itself."""
        return bool(self.masks or self.keep or self.groups)


class Preset(NamedTuple):
    """Question, the rows that answer it, and the columns of table and figure.

    Attributes:
        title: title of the figure.
        asks: the question.
        rows: variants; with `subsets`, the one variant to test.
        columns: columns of the table.
        panels: columns in each panel of the figure.
        axis: title of the first column, and of the axis of the figure.
        sweep: whether the labels are numbers, drawn as lines instead of bars.
        subsets: whether there is a row per subset of the modalities, the largest first.
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
        """Return the rows for a set with these modalities."""
        if not self.subsets:
            return self.rows
        sizes = range(len(modalities), 0, -1)
        subsets = [subset for size in sizes for subset in combinations(modalities, size)]
        return tuple(row._replace(label=" + ".join(subset), keep=subset) for row in self.rows for subset in subsets)


def watched(name: str, *, percent: bool = False, digits: int = 1) -> Column:
    """Return a column: the mean of the numbers watched as `name` or `name/...`, without the zeros of unused blocks."""

    def value(run: Result) -> float:
        numbers = [number for key, number in run["watch"].items() if key == name or key.startswith(f"{name}/")]
        return (100 if percent else 1) * (statistics.mean(filter(None, numbers)) if any(numbers) else numbers[0])

    return Column(value, digits)


# Columns and presets that methods share.
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
    axis="present at test time",
    subsets=True,
)
