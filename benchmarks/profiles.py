"""Time by part: of a forward pass of ViT-S/16 with SFM, and of an epoch of the training of `make demo`.

python -m benchmarks.profiles   # draw both into docs/assets/benchmarks
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import data
from benchmarks.backbones import NAMES, Pair
from benchmarks.plots import INKS, styled
from benchmarks.report import DOCS
from benchmarks.runner import threads

CALLS = 20
ARCHITECTURE = "vit_small_patch16_224"
# Kinds of operators, by parts of their names; the first kind that fits is taken.
KINDS = {
    "linear layers": ("addmm", "linear"),
    "attention": ("scaled_dot", "stmi", "bmm", "amax", "amin", "exp", "addcmul", "sub", "div", "sum", "mul"),
    "convolution": ("convolution",),
    "norms, GELU, residuals": ("layer_norm", "gelu", "add"),
}
OTHERS = "all other operators"
COLOURS = {"plain": "#8492a6", "with SFM": "#2f9e6e", "epoch": "#2f9e6e"}

Shares = dict[str, float]


def draw(docs: Path) -> None:
    """Measure and draw both profiles for both themes."""
    folder = docs / "assets" / "benchmarks"
    folder.mkdir(parents=True, exist_ok=True)
    with threads(1):
        figures = {"forward": forward(), "epoch": {"epoch": epoch()}}
    for name, bars in figures.items():
        for theme, ink in INKS.items():
            _figure(bars, folder / f"cpu-profile-{name}-{theme}.svg", ink)


def forward() -> dict[str, Shares]:
    """Measure the milliseconds of one image by kind of operator, without SFM and with SFM."""
    pair = Pair(ARCHITECTURE, "cpu")
    comparison = pair.comparison("", 1, Pair.forward, 1.0, threads=1)
    calls = {"plain": comparison.contenders[NAMES[ARCHITECTURE]].call, "with SFM": comparison.contenders["ours"].call}
    return {name: _by_kind(call) for name, call in calls.items()}


def _by_kind(call: Callable[[], Any]) -> Shares:
    call()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(CALLS):
            call()
    shares = dict.fromkeys((*KINDS, OTHERS), 0.0)
    for event in recorded.key_averages():
        kind = next((kind for kind, parts in KINDS.items() if any(part in event.key for part in parts)), OTHERS)
        shares[kind] += event.self_cpu_time_total / 1000 / CALLS
    return shares


def epoch() -> Shares:
    """Measure the milliseconds of an epoch by part."""
    with TemporaryDirectory() as folder:
        training = data.Training(data.write_items(Path(folder)), Path(folder), "cpu")
        training.epoch()
        spent: Shares = {}
        with ExitStack() as stack:
            for name, owner, attribute in (
                ("images and masks", type(training.dataset), "__getitem__"),
                ("model, forward", type(training.run.model), "forward"),
                ("losses, forward", type(training.run.objective), "forward"),
                ("backward", torch.Tensor, "backward"),
                ("optimizer", type(training.run.optimizer), "step"),
            ):
                stack.enter_context(_timed(spent, name, owner, attribute))
            began = time.perf_counter()
            training.epoch()
            total = 1000 * (time.perf_counter() - began)
    return spent | {"the loop": total - sum(spent.values())}


@contextmanager
def _timed(spent: Shares, name: str, owner: type, attribute: str) -> Iterator[None]:
    """Add the milliseconds of all calls of a method to an entry."""
    method = getattr(owner, attribute)

    def run(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return method(*args, **kwargs)
        finally:
            spent[name] = spent.get(name, 0.0) + 1000 * (time.perf_counter() - began)

    with mock.patch.object(owner, attribute, run):
        yield


def _figure(bars: dict[str, Shares], path: Path, ink: str) -> None:
    with styled(ink):
        figure, panel = plt.subplots(figsize=(8.4, 2.6), layout="constrained")
        height = 0.8 / len(bars)
        for index, (name, shares) in enumerate(bars.items()):
            places = [row + index * height for row in range(len(shares))]
            drawn = panel.barh(places, list(shares.values()), height, color=COLOURS[name], label=name)
            panel.bar_label(drawn, fmt="%.1f", padding=3)
        labels = list(next(iter(bars.values())))
        panel.set_yticks([row + height * (len(bars) - 1) / 2 for row in range(len(labels))], labels)
        panel.invert_yaxis()
        panel.set(xlabel="ms")
        panel.spines[["top", "right"]].set_visible(False)
        panel.patch.set_alpha(0)
        if len(bars) > 1:
            panel.legend(frameon=False, loc="lower right")
        figure.savefig(path, metadata={"Date": None}, transparent=True)
        plt.close(figure)


if __name__ == "__main__":
    argparse.ArgumentParser(prog="python -m benchmarks.profiles", description=__doc__).parse_args()
    draw(DOCS)
