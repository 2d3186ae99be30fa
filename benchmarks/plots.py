"""Time and memory of attention against the number of tokens and against the share of the foreground."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

COLOURS = {
    "scaled_dot_product_attention": "#7d8998",
    "ours": "#2f7d5b",
    "as written": "#c2452a",
    "as written, compiled": "#d99a1e",
}
PASSES = ("forward", "forward and backward")
QUANTITIES = {"milliseconds": "ms per call", "mebibytes": "MiB above the inputs"}


def write(results: Sequence[dict], folder: Path) -> dict[str, str]:
    """Draw both figures; their file names and captions."""
    swept = [result for result in results if result["sweep"]]
    usual = swept[0]["sweep"]["share"]
    by_tokens = [result for result in swept if result["sweep"]["share"] == usual]
    by_share = [result for result in swept if result["sweep"]["share"] != usual]
    captions = {
        "benchmark-tokens.svg": "Time and memory of attention against the number of tokens; larger N, smaller batch",
        "benchmark-foreground.svg": "Time and memory of attention against the share of foreground tokens, N = 577",
    }
    tokens, foreground = (folder / name for name in captions)
    _figure(by_tokens, "tokens", "tokens N", tokens, log=True)
    _figure(by_share, "share", "share of foreground tokens", foreground, log=False)
    return captions


def _figure(results: Sequence[dict], axis: str, label: str, path: Path, *, log: bool) -> None:
    with plt.rc_context({"font.size": 9, "svg.hashsalt": "stmi-layers"}):
        figure, panels = plt.subplots(2, 2, figsize=(8.4, 5.6), layout="constrained", sharex=True, squeeze=False)
        for panel_row, (quantity, unit) in zip(panels, QUANTITIES.items(), strict=True):
            for panel, kind in zip(panel_row, PASSES, strict=True):
                _panel(panel, [item for item in results if item["sweep"]["pass"] == kind], axis, quantity)
                panel.set(
                    title=kind, ylabel=unit, **({"xscale": "log", "yscale": "log"} if log else {"ylim": (0, None)})
                )
        ticks = sorted({item["sweep"][axis] for item in results})
        for panel in panels[-1]:
            panel.set(xlabel=label)
            panel.set_xticks(ticks, [f"{tick:g}" for tick in ticks], minor=False)
            panel.minorticks_off()
        panels[0, 0].legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _panel(panel: Axes, results: Sequence[dict], axis: str, quantity: str) -> None:
    for name, colour in COLOURS.items():
        points = [
            (item["sweep"][axis], item["contenders"][name][quantity]) for item in results if name in item["contenders"]
        ]
        if points:
            panel.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3.5, color=colour, label=name)
