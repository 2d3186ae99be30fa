"""Figure of a comparison: a panel per group of numbers, bars for variants and lines for a sweep."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from examples.comparison_table import values_of
from examples.figures.style import save
from examples.preset import Column, Result
from stmi_layers.training.files import write_text

# Largest number of rows whose labels do not run into each other.
CROWD = 8
COLORS = ("#4575b4", "#f46d43", "#1a9850", "#984ea3")
# matplotlib writes the colours of a light page; on a dark one, ink turns light and paper transparent.
DARK = """<style>
@media (prefers-color-scheme: dark) {
  g[id^="text_"] { fill: #d6dae3; }
  [style*="stroke: #000000"] { stroke: #d6dae3 !important; }
  [style*="stroke: #dddddd"] { stroke: #4a5060 !important; }
  [style*="fill: #ffffff"] { fill: none !important; }
  [style*="fill: #4575b4"] { fill: #7ba3e0 !important; }
  [style*="stroke: #4575b4"] { stroke: #7ba3e0 !important; }
  [style*="fill: #984ea3"] { fill: #c98ad3 !important; }
  [style*="stroke: #984ea3"] { stroke: #c98ad3 !important; }
}
</style>
"""


def draw(
    rows: dict[str, list[Result]],
    panels: Sequence[Mapping[str, Column]],
    path: Path,
    *,
    title: str,
    axis: str,
    sweep: bool,
    top: float = 0.0,
) -> list[Path]:
    """Write PNG and SVG: mean and standard deviation of every number, and a dot for every seed.

    Args:
        rows: results of the seeds by label.
        panels: columns of each panel, by name.
        path: path of the figure, without suffix.
        title: title above the figure.
        axis: title of the axis of the labels.
        sweep: whether the labels are numbers, to be joined by lines.
        top: upper end of the panels with an mAP, in percent; 0 fits each panel to its numbers.
    """
    across = (
        (6.4 if len(panels) == 1 else 4.6)
        if sweep
        else min(9.5, max(5.5, 1.5 + 0.55 * len(rows) * max(map(len, panels))))
    )
    figure = Figure(figsize=(across * len(panels) + 0.4, 4.2), layout="constrained")
    figure.suptitle(title, fontsize=12)
    for panel, columns in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        numbers = {
            name: {label: values_of(column, runs) for label, runs in rows.items()} for name, column in columns.items()
        }
        present = [name for name, of_label in numbers.items() if any(of_label.values())]
        for index, column in enumerate(present):
            of_label = numbers[column]
            color = COLORS[index % len(COLORS)]
            if sweep:
                _line(panel, of_label, column, color)
            else:
                _bars(panel, of_label, column, color, index, len(present))
        scored = any(name.partition(" by ")[0] == "mAP" for name in columns)
        room = (0, top if top and scored else 1.05 * panel.get_ylim()[1])
        panel.set(xlabel=axis, ylabel="percent" if scored else "", ylim=room)
        panel.grid(axis="y", color="#dddddd", linewidth=0.7)
        panel.set_axisbelow(True)
        if not sweep:
            long = 0.1 * sum(map(len, rows)) > 0.8 * across
            panel.set_xticks(range(len(rows)), list(rows))
            panel.tick_params(axis="x", rotation=15 if long else 0)
            if len(rows) > CROWD:
                panel.set_xticks(range(len(rows)), list(rows), rotation=40, ha="right", rotation_mode="anchor")
        panel.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(present), frameon=False)
    return write_figure(figure, path)


def write_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and as SVG that follows the palette of a page; the path has no suffix."""
    paths = save(figure, path.with_suffix(".png"), path.with_suffix(".svg"))
    follow_the_palette(paths[1])
    return paths


def follow_the_palette(path: Path) -> None:
    """Give an SVG of matplotlib a style for dark pages; one that has it stays as it is."""
    drawn = path.read_text()
    if DARK not in drawn:
        write_text(path, drawn.replace(" <defs>\n", f"{DARK} <defs>\n", 1))


def _line(panel: Axes, of_label: dict[str, list[float]], column: str, color: str) -> None:
    places = range(len(of_label))
    means, deviations = _statistics(of_label)
    joined = "-" if len(of_label) > 2 else "none"  # two points make no curve
    style = {"color": color, "marker": "_", "markersize": 14, "markeredgewidth": 2, "linewidth": 1, "elinewidth": 1}
    panel.errorbar(places, means, deviations, linestyle=joined, capsize=3, label=column, **style)
    panel.set_xticks(places, list(of_label))
    _dots(panel, of_label, 0.0, 0.3, color)


def _bars(panel: Axes, of_label: dict[str, list[float]], column: str, color: str, index: int, count: int) -> None:
    width = 0.8 / count
    shift = (index - (count - 1) / 2) * width
    means, deviations = _statistics(of_label)
    places = [place + shift for place in range(len(of_label))]
    panel.bar(places, means, 0.92 * width, yerr=deviations, capsize=3, color=color, alpha=0.5, label=column)
    _dots(panel, of_label, shift, 0.6 * width, color)


def _dots(panel: Axes, of_label: dict[str, list[float]], shift: float, width: float, color: str) -> None:
    """Draw a dot per seed, side by side across a width, so that no dot hides another."""
    points = [
        (place + shift + width * ((seed + 0.5) / len(values) - 0.5), value)
        for place, values in enumerate(of_label.values())
        for seed, value in enumerate(values)
    ]
    panel.scatter(*zip(*points, strict=True), s=16, color=color, edgecolors="black", linewidths=0.5, zorder=3)


def _statistics(of_label: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation by label; the mean is NaN where there is no value."""
    means = [statistics.mean(values) if values else float("nan") for values in of_label.values()]
    return means, [statistics.stdev(values) if len(values) > 1 else 0.0 for values in of_label.values()]
