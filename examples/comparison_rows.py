"""Figure of a comparison of methods: a line per method, a dot per seed, a colour and a shape per input.

python -m examples.comparison_rows --tables runs/places/methods-epochs runs/parcels/methods-epochs \
    --names places parcels --out runs/overview

shows the mAP of several comparisons side by side, from the table.json that `python -m examples.compare` writes: in
table.md with a column per comparison, and in a figure with a panel each. `--lost-without RGB` shows the share of the
mAP that each method loses without that modality at test; it needs the tables of `compare --missing`.
"""

import json
import math
import re
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from examples import cli, compare
from examples.comparison_figure import COLORS, write_figure
from examples.comparison_table import as_command, as_markdown, as_page, headline_score, spread, values_of
from examples.preset import Column, Result
from stmi_layers.training.files import write_text

PROGRAM = "python -m examples.comparison_rows"

# Inputs beside images, in the order of their lines, and their marks.
MARKS = {"": "o", "masks": "s", "captions": "^", "masks + captions": "D"}
# Inches per line, and per panel.
LINE, PANEL = 0.13, 2.2
# Columns to draw, by the part of their name before " without " or " at ", and their units.
DRAWN = {"mAP": "percent", "R1": "percent", "CPU minutes": "minutes"}


class Panel(NamedTuple):
    """Numbers of the seeds by label, under one title; panels of one unit have one scale."""

    title: str
    unit: str
    values: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Arguments:
    """Several comparisons of methods in one table and one figure."""

    tables: tuple[Path, ...]
    """Folders of comparisons, each with a table.json."""
    names: tuple[str, ...]
    """Titles of columns and panels, in the order of `tables`."""
    out: Path
    """Folder of table.md, figure.png and figure.svg."""
    scored: Literal["mAP", "R1"] = "mAP"
    """Score to show."""
    lost_without: str = ""
    """Show the share of the score that is lost without this modality at test; the tables are those of `--missing`."""
    title: str = "Methods, a dot per seed"
    """Title above all panels."""
    docs: str = ""
    """Name of table and figure: copy them to docs/tables/results-NAME.md and docs/assets/results/NAME.svg."""

    def __post_init__(self) -> None:
        if not self.tables or len(self.tables) != len(self.names):
            raise ValueError(f"names must be as many as tables; received {len(self.names)} and {len(self.tables)}")


def draw_rows(panels: Sequence[Panel], path: Path, *, title: str) -> list[Path]:
    """Write PNG and SVG: a line per method, in it a line per input, a dot per seed, and a stroke at the mean.

    Args:
        panels: panels to show side by side; labels are "METHOD" or "METHOD + INPUTS".
        path: path of the figure, without suffix.
        title: title above the figure.
    """
    split = {label: label.partition(" + ")[::2] for panel in panels for label in panel.values}
    methods = list(dict.fromkeys(method for method, _ in split.values()))
    inputs = [one for one in MARKS if one in {more for _, more in split.values()}]
    height = 1.5 + LINE * len(methods) * (len(inputs) + 0.6)
    figure = Figure(figsize=(1.4 + PANEL * len(panels), height), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for axis, panel in zip(figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True):
        own = [one for one in inputs if one in {split[label][1] for label in panel.values}]
        for label, values in panel.values.items():
            method, more = split[label]
            _line(axis, methods.index(method) + _shift(own.index(more), len(own)), values, more)
        axis.set_title(panel.title, fontsize=10)
        axis.set(xlabel=panel.unit, ylim=(len(methods) - 0.5, -0.5))
        axis.set_yticks(range(len(methods)), methods)
        axis.grid(axis="x", color="#dddddd", linewidth=0.7)
        for line in range(len(methods) - 1):
            axis.axhline(line + 0.5, color="#dddddd", linewidth=0.7)
        axis.set_axisbelow(True)
    _scale(figure.axes, panels)
    if inputs != [""]:
        shown = [_mark(more) for more in inputs]
        names = [f"with {more}" if more else "images alone" for more in inputs]
        figure.legend(shown, names, loc="outside lower center", ncols=len(inputs), fontsize=9, frameon=False)
    return write_figure(figure, path)


def draw_columns(
    columns: Mapping[str, Column], rows: Mapping[str, Sequence[Result]], path: Path, *, title: str
) -> list[Path]:
    """Draw the scores and the CPU minutes of a table, a panel per column."""
    panels = [
        Panel(name, DRAWN[kind], {label: values_of(column, runs) for label, runs in rows.items()})
        for name, column in columns.items()
        if (kind := re.split(" without | at ", name)[0]) in DRAWN
    ]
    return draw_rows(panels, path, title=title)


def _shift(index: int, count: int) -> float:
    return 0.8 * ((index + 0.5) / count - 0.5)


def _line(axis: Axes, place: float, values: Sequence[float], more: str) -> None:
    color = COLORS[list(MARKS).index(more)]
    style = {"color": color, "edgecolors": "black", "linewidths": 0.5}
    axis.scatter(values, [place] * len(values), s=20, marker=MARKS[more], zorder=3, **style)
    axis.scatter([statistics.mean(values)], [place], s=110, marker="|", color=color, linewidths=1.8, zorder=2)


def _mark(more: str) -> Line2D:
    color = COLORS[list(MARKS).index(more)]
    return Line2D([], [], linestyle="none", marker=MARKS[more], color=color, markeredgecolor="black")


def _scale(axes: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """Give panels of one unit one scale with 0 on it; percentages end at a multiple of 25."""
    for axis, panel in zip(axes, panels, strict=True):
        alike = [other.values for other in panels if other.unit == panel.unit]
        drawn = [0.0, *(value for of_label in alike for values in of_label.values() for value in values)]
        step = 25 if panel.unit == "percent" else max(drawn) or 1
        start, end = step * math.floor(min(drawn) / step), step * math.ceil(max(drawn) / step)
        axis.set_xlim(1.06 * start, 1.06 * end or 1)


def read_panel(folder: Path, name: str, scored: str, lost_without: str = "") -> Panel:
    """Read the scores of a comparison by label, or the shares of them that are lost without a modality, in percent."""
    values: dict[str, list[float]] = {}
    for run in json.loads((folder / "table.json").read_text())["runs"]:
        result: Result = run["result"]
        score = headline_score(result, scored)
        if lost_without:
            score = 1 - headline_score(_without(result, lost_without, folder), scored) / score
        values.setdefault(run["label"], []).append(100 * score)
    return Panel(name, "percent", values)


def _without(result: Result, name: str, folder: Path) -> Result:
    found = result.get("without", {})
    if name not in found:
        raise ValueError(
            f"lost_without must be a modality that the runs of {folder} were scored without, which is "
            f"{' or '.join(found) or 'none'}; received {name} (examples.compare --missing writes such a folder)"
        )
    return found[name]


def as_columns(panels: Sequence[Panel]) -> str:
    """Format a Markdown table with a line per label and a column per panel."""
    labels = dict.fromkeys(label for panel in panels for label in panel.values)
    lines = [[label, *(spread(panel.values.get(label, [])) for panel in panels)] for label in labels]
    return as_markdown(["method", *(panel.title for panel in panels)], lines)


def main(arguments: Arguments) -> str:
    """Write table and figure, and print the table."""
    named = zip(arguments.tables, arguments.names, strict=True)
    panels = [read_panel(folder, name, arguments.scored, arguments.lost_without) for folder, name in named]
    shown = f"{arguments.scored} in percent"
    if arguments.lost_without:
        shown = f"{arguments.scored} that is lost without {arguments.lost_without} at test, in percent of that with all"
    asks = f"{shown}, mean ± standard deviation over the seeds."
    text = as_page(asks, as_columns(panels), as_command(sys.argv[1:], PROGRAM))
    write_text(arguments.out / "table.md", text)
    figures = draw_rows(panels, arguments.out / "figure", title=arguments.title)
    if arguments.docs:
        compare.publish(arguments.out, arguments.docs)
    print(text, *figures, sep="\n")
    return text


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog=PROGRAM)
