"""Time and memory of attention against the number of tokens and against the share of the foreground."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {
    "scaled_dot_product_attention": "#8492a6",
    "ours": "#2f9e6e",
    "ours, widened": "#3f7fd0",
    "ours, native": "#8a56c2",
    "as written": "#d2553a",
    "as written, compiled": "#d99a1e",
}
INKS = {"light": "#303030", "dark": "#d6d6d6"}  # colours of text and axes, by theme of the page
PASSES = ("forward", "forward and backward")
QUANTITIES = {"milliseconds": "ms per call", "mebibytes": "MiB above the inputs"}
CAPTIONS = {
    "tokens": "Time and memory of attention against the number of tokens; larger N, smaller batch",
    "share": "Time and memory of attention against the share of foreground tokens, N = 577",
}
LABELS = {"tokens": "tokens N", "share": "share of foreground tokens"}


def write(results: Sequence[dict], folder: Path, kind: str) -> dict[str, str]:
    """Draw both figures for both themes; return captions by file name, which is marked with its theme."""
    folder.mkdir(parents=True, exist_ok=True)
    swept = [result for result in results if result["sweep"]]
    usual = swept[0]["sweep"]["share"]
    captions = {}
    for axis, caption in CAPTIONS.items():
        along = [result for result in swept if (result["sweep"]["share"] == usual) == (axis == "tokens")]
        for theme, ink in INKS.items():
            name = f"{kind}-{axis}-{theme}.svg"
            _figure(along, axis, folder / name, ink)
            captions[f"{name}#only-{theme}"] = caption
    return captions


def styled(ink: str) -> AbstractContextManager[None]:
    """Draw text and axes in one colour inside the block; ids in an SVG are the same in every drawing."""
    inked = dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), ink)
    return plt.rc_context({"font.size": 9, "svg.hashsalt": "stmi-layers", **inked})


def _figure(results: Sequence[dict], axis: str, path: Path, ink: str) -> None:
    with styled(ink):
        figure, panels = plt.subplots(2, 2, figsize=(8.4, 5.6), layout="constrained", sharex=True, squeeze=False)
        scales = {"xscale": "log", "yscale": "log"} if axis == "tokens" else {"ylim": (0, None)}
        for panel_row, (quantity, unit) in zip(panels, QUANTITIES.items(), strict=True):
            for panel, kind in zip(panel_row, PASSES, strict=True):
                _panel(panel, [item for item in results if item["sweep"]["pass"] == kind], axis, quantity)
                panel.set(title=kind, ylabel=unit, **scales)
        ticks = sorted({item["sweep"][axis] for item in results})
        for panel in panels[-1]:
            panel.set(xlabel=LABELS[axis])
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
        for panel in panels.flat:
            panel.minorticks_off()
            panel.patch.set_alpha(0)
        handles, labels = panels[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        figure.savefig(path, metadata={"Date": None}, transparent=True)
        plt.close(figure)


def _panel(panel: Axes, results: Sequence[dict], axis: str, quantity: str) -> None:
    for name, colour in COLOURS.items():
        points = [
            (item["sweep"][axis], item["contenders"][name][quantity]) for item in results if name in item["contenders"]
        ]
        if points:
            panel.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3.5, color=colour, label=name)
