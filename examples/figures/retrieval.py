"""Ranked lists: queries with their best matches."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from examples.figures.style import QUERY, RIGHT, WRONG, outline
from stmi_layers.training import MultiModalDataset, Protocol
from stmi_layers.training.protocol import column as value_of


def ranked_lists(dataset: MultiModalDataset, descriptor: Tensor, name: str, protocol: Protocol) -> Figure:
    """Draw six evenly spread queries, each with its five best matches."""
    shown, matches = protocol.best_matches(descriptor, dataset.items, queries=6, k=5)
    items = [dataset.items[index] for index in shown.tolist()]
    captions = [f"id {item.identity}, {protocol.drop} {value_of(item, protocol.drop)}" for item in items]
    title = f"Queries and their best matches by {name}; green is right, orange is wrong, the mask is outlined"
    return draw_lists(dataset, shown.tolist(), matches, title=title, captions=captions)


def draw_lists(
    dataset: MultiModalDataset, queries: list[int], matches: Tensor, *, title: str, captions: list[str]
) -> Figure:
    """Draw queries in the first column, then their best matches, with a frame that tells right from wrong identities.

    Args:
        dataset: the test items, without augmentation.
        queries: dataset indices of the queries to show.
        matches: dataset indices of the best matches per query, best first; -1 where there are fewer.
        title: title above the figure.
        captions: a line above each query.
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
