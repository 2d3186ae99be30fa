"""Hyperedges of CHI, drawn over the modalities and as an incidence matrix."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from torch import Tensor

from examples.figures.attention import Picture
from examples.figures.style import COLORS, PALE, bare, outline
from examples.stmi.figures.semantic import SemanticTokens

Members = tuple[int, ...]


def draw_hyperedges(
    looks: SemanticTokens, shown: Sequence[Picture], modalities: Sequence[str], *, prior: bool
) -> Figure:
    """Draw a row per item: semantic tokens at the patches they read most, joined by hyperedges, and the incidence."""
    assert looks.incidence is not None
    height, width = shown[0].masks.shape[1:]
    side = len(modalities) * width / height
    wide = min(2.4 * side, 9.0)
    figure = Figure(figsize=(wide + 3.6, len(shown) * max(wide / side + 0.7, 4.0) + 0.5), layout="constrained")
    figure.suptitle("Semantic tokens at the patch that they read most, and the hyperedges that join them", fontsize=10)
    axes = figure.subplots(len(shown), 2, squeeze=False, width_ratios=(wide, 3.0))
    for item, (picture, (over, matrix)) in enumerate(zip(shown, axes, strict=True)):
        own = [*(str(number + 1) for number in range(looks.weights.shape[2] - prior)), *(["T"] if prior else [])]
        edges = distinct_edges(looks.incidence[item])
        colors = dict(zip(edges, COLORS, strict=False))
        spots = place_nodes(looks.weights[item], looks.grid, (height, width), picture.present)
        _draw_over(over, picture, modalities, spots, own * len(modalities), colors)
        labels = [f"{modality} {name}" for modality in modalities for name in own]
        _draw_matrix(matrix, looks.incidence[item], labels, colors, len(modalities))
        size, isolated, cross = looks.statistics[item]
        over.set_title(
            f"{picture.name}\n{size:.1f} nodes per hyperedge, {isolated:.0%} isolated, {cross:.0%} cross-modal",
            fontsize=8,
        )
        rest = len(edges) - len(colors)
        matrix.set_title("incidence" + (f"; grey: {rest} not drawn" if rest else ""), fontsize=8)
    return figure


def distinct_edges(incidence: Tensor) -> Counter[Members]:
    """Count equal hyperedges of at least two nodes, the most frequent and largest first."""
    members = [tuple(column.nonzero().flatten().tolist()) for column in incidence.T]
    counts = Counter(edge for edge in members if len(edge) > 1)
    return Counter(dict(sorted(counts.items(), key=lambda entry: (-entry[1], -len(entry[0]), entry[0]))))


def place_nodes(
    weights: Tensor, grid: tuple[int, int], size: tuple[int, int], present: Sequence[bool]
) -> NDArray[np.float64]:
    """Place the nodes on images side by side: (nodes 2) as x and y, NaN in an absent modality.

    Args:
        weights: attention of the semantic tokens, (modalities semantic patches).
        grid: rows and columns of patches.
        size: height and width of an image in pixels.
        present: which modalities are present.
    """
    height, width = size
    spots = np.full((*weights.shape[:2], 2), np.nan)
    for modality in np.flatnonzero(present):
        patches = weights[modality].argmax(dim=-1).tolist()
        for token, patch in enumerate(patches):
            row, column = divmod(patch, grid[1])
            centre = ((column + 0.5) * width / grid[1] + modality * width, (row + 0.5) * height / grid[0])
            # Tokens that share a patch are placed around it.
            crowd = [other for other, own in enumerate(patches) if own == patch]
            angle = 2 * np.pi * crowd.index(token) / len(crowd)
            reach = 0.0 if len(crowd) == 1 else 0.085 * min(size)
            x, y = centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle)
            edge = 0.04 * min(size)
            left = modality * width
            spots[modality, token] = np.clip(x, left + edge, left + width - edge), np.clip(y, edge, height - edge)
    return spots.reshape(-1, 2)


def _draw_over(
    axis: Axes,
    picture: Picture,
    modalities: Sequence[str],
    spots: NDArray[np.float64],
    names: Sequence[str],
    colors: dict[Members, str],
) -> None:
    height, width = picture.masks.shape[1:]
    shown = [
        image if there else np.full_like(image, 240)
        for image, there in zip(picture.images, picture.present, strict=True)
    ]
    axis.imshow(np.concatenate(shown, axis=1), interpolation="none", alpha=0.75)
    masks = [mask & there for mask, there in zip(picture.masks, picture.present, strict=True)]
    outline(axis, np.concatenate(masks, axis=1))
    for place, (name, there) in enumerate(zip(modalities, picture.present, strict=True)):
        label = name if there else f"{name}: absent"
        axis.text((place + 0.5) * width, height + 0.03 * height, label, ha="center", va="top", fontsize=9)
    for members, color in colors.items():
        own = spots[list(members)]
        hub = own.mean(axis=0)
        for x, y in own:
            axis.plot((hub[0], x), (hub[1], y), color="white", linewidth=3.2, zorder=2)
            axis.plot((hub[0], x), (hub[1], y), color=color, linewidth=2.0, zorder=3)
        axis.plot(*hub, marker="D", markersize=6, color=color, markeredgecolor="white", zorder=4)
    joined = {node for members in colors for node in members}
    for node, ((x, y), name) in enumerate(zip(spots, names, strict=True)):
        if np.isfinite(x):
            face = "white" if node in joined else PALE
            axis.text(x, y, name, ha="center", va="center", fontsize=7, zorder=6)
            axis.plot(x, y, "o", markersize=11, markerfacecolor=face, markeredgecolor="#333333", zorder=5)
    axis.set(xlim=(-0.5, len(modalities) * width - 0.5), ylim=(1.12 * height, -0.5))
    bare(axis)


def _draw_matrix(
    axis: Axes, incidence: Tensor, labels: Sequence[str], colors: dict[Members, str], modalities: int
) -> None:
    nodes, edges = incidence.shape
    for edge in range(edges):
        members = tuple(incidence[:, edge].nonzero().flatten().tolist())
        color = colors.get(members, "#888888" if len(members) > 1 else PALE)
        for node in members:
            axis.add_patch(Rectangle((edge - 0.45, node - 0.45), 0.9, 0.9, color=color))
    for border in range(1, modalities):
        place = border * nodes / modalities - 0.5
        axis.axhline(place, color="#999999", linewidth=0.7)
        axis.axvline(place, color="#999999", linewidth=0.7)
    axis.set(xlim=(-0.5, edges - 0.5), ylim=(nodes - 0.5, -0.5), aspect="equal")
    axis.set_xticks(range(edges), labels, rotation=90, fontsize=6)
    axis.set_yticks(range(nodes), labels, fontsize=6)
    axis.tick_params(length=0)
    axis.set_xlabel("hyperedge of", fontsize=8)
    axis.set_ylabel("node", fontsize=8)
