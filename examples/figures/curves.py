"""Curves of a run: loss and learning rate, mAP, and watched numbers of the model."""

from collections.abc import Sequence
from itertools import cycle
from typing import Any

from matplotlib.figure import Figure

from examples.figures.style import COLORS, QUERY


def curves(history: Sequence[dict[str, Any]]) -> Figure:
    """Draw loss and learning rate, mAP of every descriptor, and each family of watched numbers over the epochs.

    The family of a watched number is the part of its name before the "/", or the whole name.
    """
    families = list(dict.fromkeys(name.partition("/")[0] for entry in history for name in entry.get("watch", {})))
    # Alpha and beta of the same blocks share a panel.
    paired = [tuple(family for family in families if family in ("alpha", "beta"))]
    panels = [panel for panel in [*paired, *((one,) for one in families if one not in paired[0])] if panel]
    count = 2 + len(panels)
    figure = Figure(figsize=(4.4 * count, 3.6), layout="constrained")
    learning, retrieval, *watched = figure.subplots(1, count)
    epochs = [entry["epoch"] for entry in history]
    learning.plot(epochs, [entry["loss"] for entry in history], "o-", markersize=3, color=QUERY)
    learning.set(title="training loss (line) and learning rate (dashed)", xlabel="epoch", ylabel="loss")
    rate = learning.twinx()
    rate.plot(epochs, [entry["learning_rate"] for entry in history], color="#999999", linestyle="--")
    rate.set(ylabel="learning rate", ylim=(0, None))

    scored = [entry for entry in history if "mAP" in entry]
    look = "o-" if len(scored) > 2 else "o"  # two points make no curve
    for name, color in zip(scored[-1]["mAP"] if scored else (), cycle(COLORS), strict=False):
        values = [entry["mAP"].get(name) for entry in scored]
        retrieval.plot([entry["epoch"] for entry in scored], values, look, markersize=4, color=color, label=name)
    retrieval.set(title="mAP on the scored split, by descriptor", xlabel="epoch", ylabel="mAP", ylim=(0, 1))
    if scored:
        retrieval.legend(loc="best")
    for axis, panel in zip(watched, panels, strict=True):
        draw_watched(axis, history, panel)
    return figure


def draw_watched(axis: Any, history: Sequence[dict[str, Any]], families: Sequence[str]) -> None:
    """Draw the watched numbers of some families, each in one colour, pale for the first number, with one label."""
    single = len(families) == 1
    for family, color in zip(families, cycle((COLORS[2], COLORS[3])), strict=False):
        names = list(dict.fromkeys(key for entry in history for key in entry["watch"]))
        own = [name for name in names if name.partition("/")[0] == family]
        for index, name in enumerate(own):
            points = [(entry["epoch"], entry["watch"][name]) for entry in history if name in entry["watch"]]
            label = name.partition("/")[2] or name if single else family if index == 0 else None
            look = (
                {"color": COLORS[index % len(COLORS)]} if single else {"color": color, "alpha": (index + 1) / len(own)}
            )
            axis.plot(*zip(*points, strict=True), "o-", markersize=3, label=label, **look)
    axis.set(title=", ".join(families) + ("" if single else ", pale: first block"), xlabel="epoch")
    axis.legend(loc="best", fontsize=7)
