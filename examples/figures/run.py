"""How a run learned, and what it retrieves."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from examples.figures.style import COLORS, QUERY, RIGHT, WRONG, outline
from stmi_layers.training.dataset import MultiModalDataset


def curves(history: list[dict[str, Any]]) -> Figure:
    """Loss and learning rate, mAP of every descriptor, and the strengths of SFM, over the epochs."""
    figure = Figure(figsize=(13, 3.6), layout="constrained")
    learning, retrieval, strengths = figure.subplots(1, 3)
    epochs = [entry["epoch"] for entry in history]
    learning.plot(epochs, [entry["loss"] for entry in history], color=QUERY)
    learning.set(title="training loss (line) and learning rate (dashes)", xlabel="epoch", ylabel="loss")
    rate = learning.twinx()
    rate.plot(epochs, [entry["learning_rate"] for entry in history], color="#999999", linestyle="--")
    rate.set(ylabel="learning rate", ylim=(0, None))

    scored = [entry for entry in history if "mAP" in entry]
    for name, color in zip(scored[-1]["mAP"] if scored else (), COLORS, strict=False):
        values = [entry["mAP"].get(name) for entry in scored]
        retrieval.plot([entry["epoch"] for entry in scored], values, "o-", markersize=3, color=color, label=name)
    retrieval.set(title="mAP on the test split, by descriptor", xlabel="epoch", ylim=(0, 1))
    if scored:
        retrieval.legend(loc="lower right")

    for name, color in (("alpha", RIGHT), ("beta", WRONG)):
        per_block = np.array([entry[name] for entry in history])
        for block in range(per_block.shape[1] if per_block.ndim == 2 else 0):
            label = name if block == 0 else None
            strengths.plot(
                epochs, per_block[:, block], color=color, alpha=0.4 + 0.6 * block / per_block.shape[1], label=label
            )
        if per_block.ndim == 2 and per_block.shape[1]:
            strengths.legend(loc="best")
    strengths.set(title="SFM strengths, pale: first block", xlabel="epoch")
    return figure


def retrieval(
    dataset: MultiModalDataset, queries: list[int], matches: Tensor, *, title: str, captions: list[str]
) -> Figure:
    """Queries in the first column, their best matches after it, framed by whether the identity is right.

    Args:
        dataset: the test items, without augmentation.
        queries: dataset indices of the queries to show.
        matches: dataset indices of the best matches per query, best first; -1 where there are fewer.
        title: above the picture.
        captions: a line beside each query.
    """
    rows, columns = len(queries), matches.shape[1] + 1
    height, width = dataset.size
    cell = (1.35 * len(dataset.items[0].images) * width / height, 1.75)
    figure = Figure(figsize=(columns * cell[0] + 0.4, rows * cell[1] + 0.7), layout="constrained")
    figure.suptitle(title, fontsize=11)
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, (query, best) in enumerate(zip(queries, matches.tolist(), strict=True)):
        _show(axes[row][0], dataset, query, QUERY, f"query {captions[row]}")
        for column, match in enumerate(best, start=1):
            if match < 0:
                axes[row][column].axis("off")
                continue
            right = dataset.items[match].identity == dataset.items[query].identity
            verdict = f"{column}: {'right' if right else 'wrong'}, id {dataset.items[match].identity}"
            _show(axes[row][column], dataset, match, RIGHT if right else WRONG, verdict)
    return figure


def _show(axis: Axes, dataset: MultiModalDataset, index: int, color: str, label: str) -> None:
    images, masks = dataset.picture(index)
    axis.imshow(np.concatenate(list(images), axis=1), interpolation="none")
    outline(axis, np.concatenate(list(masks), axis=1))
    axis.set(xticks=[], yticks=[])
    axis.set_title(label, fontsize=7, color=color, pad=4)
    for spine in axis.spines.values():
        spine.set(color=color, linewidth=3)
