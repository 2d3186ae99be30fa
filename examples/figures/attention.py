"""Attention maps over the images of every modality, with the mask outlined."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from numpy.typing import NDArray
from torch import Tensor

from examples.figures.look import ClassToken
from examples.figures.style import show_absent, show_image, show_weights, spread
from stmi_layers import token_foreground
from stmi_layers.training import MultiModalDataset

BLOCKS = 4  # largest number of shown blocks, spread evenly from the first to the last
WIDE = 1.15  # side of a square image in inches
EVEN = 4  # the scale of a map reaches at least this many times even attention, so that near-even maps look even


class Picture(NamedTuple):
    """Item for display: images (modalities height width 3), masks, and which modalities are present."""

    name: str
    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    present: list[bool]


def pictures(dataset: MultiModalDataset, indices: Sequence[int]) -> list[Picture]:
    """Return items of a dataset by index."""
    items = [dataset.items[index] for index in indices]
    return [
        Picture(item.name, *dataset.picture(index), [image is not None for image in item.images])
        for index, item in zip(indices, items, strict=True)
    ]


def draw_class_token(
    looks: ClassToken, shown: Sequence[Picture], modalities: Sequence[str], threshold: float
) -> Figure:
    """Draw the class token's attention per block, without and with masks; `threshold` decides on foreground."""
    states = sorted(looks.weights)
    blocks = spread(looks.weights[False].shape[2], BLOCKS)
    columns = [(block, state) for block in blocks for state in states]
    title = "Attention of the class token, mean over heads"
    if True in states:
        title += "\nbelow each map: the share of the attention that falls on the mask"
    figure, rows = rows_of(shown, modalities, 1 + len(columns), title)
    for place, (item, modality, axes) in enumerate(rows):
        picture = shown[item]
        mask = torch.from_numpy(picture.masks[modality])
        inside = token_foreground(mask[None], looks.grid, threshold=threshold, prefix_tokens=0)[0]
        for axis, (block, state) in zip(axes[1:], columns, strict=True):
            if place == 0:
                axis.set_title(_heading(looks, block, state, states), fontsize=8)
            if not picture.present[modality]:
                show_absent(axis, picture.masks.shape[1:])
                continue
            both = [looks.weights[one][item, modality, block] for one in states]
            weights = looks.weights[state][item, modality, block]
            show_map(axis, picture, modality, weights, looks.grid, of_scale=both)
            if True in states and not inside.all():
                axis.set_xlabel(f"{weights[inside].sum() / weights.sum():.0%}", fontsize=7, labelpad=1)
    return figure


def _heading(looks: ClassToken, block: int, state: bool, states: Sequence[bool]) -> str:
    if len(states) == 1:
        return f"block {block + 1}"
    if not state:
        return f"block {block + 1}\nwithout SFM"
    strengths = looks.strengths[block]
    return "with SFM\n" + ("none here" if strengths is None else r"$\alpha$ {:.2f}, $\beta$ {:.2f}".format(*strengths))


def rows_of(
    shown: Sequence[Picture], modalities: Sequence[str], columns: int, title: str
) -> tuple[Figure, list[tuple[int, int, Sequence[Axes]]]]:
    """Lay out a row per item and modality, with its image first: (item, modality, axes of the row)."""
    height, width = shown[0].masks.shape[1:]
    cell = (WIDE * min(1.0, width / height), WIDE * min(1.0, height / width))
    count = len(shown) * len(modalities)
    narrow = ConstrainedLayoutEngine(w_pad=0.02, h_pad=0.02, wspace=0.02, hspace=0.02)
    figure = Figure(figsize=(columns * (cell[0] + 0.12) + 0.6, count * (cell[1] + 0.22) + 1.0), layout=narrow)
    figure.suptitle(title, fontsize=9)
    grid = figure.subplots(count, columns, squeeze=False)
    rows = []
    for row, axes in enumerate(grid):
        item, modality = divmod(row, len(modalities))
        if shown[item].present[modality]:
            show_image(axes[0], shown[item].images[modality], shown[item].masks[modality])
        else:
            show_absent(axes[0], (height, width))
        axes[0].set_ylabel(modalities[modality], fontsize=8)
        if modality == 0:
            axes[0].set_title(shown[item].name, fontsize=6)
        rows.append((item, modality, axes))
    return figure, rows


def show_map(
    axis: Axes,
    picture: Picture,
    modality: int,
    weights: Tensor,
    grid: tuple[int, int],
    of_scale: Sequence[Tensor],
) -> None:
    """Draw the weights of the patches over the faded image, on the common scale of all maps in `of_scale`."""
    show_image(axis, picture.images[modality], picture.masks[modality], faded=True)
    most = max(EVEN / len(weights), *(one.max().item() for one in of_scale))
    show_weights(axis, weights.reshape(grid).numpy(), picture.masks.shape[1:], most)
