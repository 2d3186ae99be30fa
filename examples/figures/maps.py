"""Maps of features in two dimensions, by t-SNE and by principal components, coloured by identity."""

from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from examples.figures.style import COLORS, PALE, spread
from examples.optional import import_library

# More styles could not be told apart; further identities are pale.
STYLES = [(color, marker) for marker, color in product("o^s", COLORS)]
LEAST = 4  # smallest number of items for t-SNE


def draw_maps(
    panels: Mapping[str, Tensor], identities: Sequence[int | str | None], *, title: str, seed: int = 0
) -> Figure:
    """Draw a column per panel: t-SNE above, principal components below.

    Args:
        panels: features (items dim) by title of the panel.
        identities: identities of the items.
        title: title above the figure; numbers of items and colours, and the perplexity, are added.
        seed: seed of t-SNE.
    """
    count = len(identities)
    methods = ["t-SNE", "PCA"] if count >= LEAST else ["PCA"]
    figure = Figure(figsize=(max(3.0 * len(panels), 6.0), 3.0 * len(methods) + 1.3), layout="constrained")
    styles = choose_styles(identities)
    every = len(set(identities))
    pale = f"; {len(styles)} of {every} identities in colour" if len(styles) < every else ""
    figure.suptitle(f"{title}\n{count} test items, t-SNE with perplexity {perplexity(count):.3g}{pale}", fontsize=10)
    axes = figure.subplots(len(methods), len(panels), squeeze=False)
    for column, (name, features) in enumerate(panels.items()):
        values = features.double().numpy()
        for row, method in enumerate(methods):
            axis = axes[row][column]
            if method == "t-SNE":
                points = tsne(values, seed=seed)
                labels = ("", "")
            else:
                points, shares = principal_components(values)
                labels = tuple(f"component {part + 1}: {share:.0%}" for part, share in enumerate(shares))
            _scatter(axis, points, identities, styles)
            axis.set_xlabel(labels[0], fontsize=8)
            axis.set_ylabel(labels[1], fontsize=8)
            axis.set_title(f"{name}\n{method}" if row == 0 else method, fontsize=9)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside lower center", ncols=9, fontsize=7, frameon=False, title="identity",
        title_fontsize=7, columnspacing=1.0, handletextpad=0.2,
    )  # fmt: skip
    return figure


def perplexity(count: int) -> float:
    """Return the perplexity of t-SNE: 30, or a third of the other items if there are few."""
    return min(30.0, (count - 1) / 3)


def tsne(features: NDArray[np.float64], *, seed: int) -> NDArray[np.float64]:
    """Return two coordinates per row: neighbours stay close, but larger distances mean little."""
    manifold = import_library("sklearn.manifold", "examples")
    if features.shape[1] < 2 or np.ptp(features, axis=0).max() == 0:
        return np.zeros((len(features), 2))  # all rows are equal
    start = principal_components(features)[0]
    start = 1e-4 * start / max(float(start[:, 0].std()), 1e-12)
    return manifold.TSNE(perplexity=perplexity(len(features)), init=start, random_state=seed).fit_transform(features)


def principal_components(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return coordinates (items 2) along the two directions of largest variance, and their shares of the variance."""
    centred = features - features.mean(axis=0)
    left, sizes, _ = np.linalg.svd(centred, full_matrices=False)
    variance = np.pad(sizes**2, (0, 2))
    points = np.pad(left * sizes, ((0, 0), (0, 2)))[:, :2]
    # The sign of a direction is arbitrary: the coordinate of largest size is made positive on every machine.
    points *= np.where(points[np.abs(points).argmax(axis=0), [0, 1]] < 0, -1, 1)
    return points, variance[:2] / max(variance.sum(), 1e-300)


def choose_styles(identities: Sequence[int | str | None]) -> dict[int | str | None, tuple[str, str]]:
    """Return colour and shape for identities spread evenly over all, as many as there are styles."""
    every = sorted(set(identities), key=lambda one: (isinstance(one, str), one is None, one or 0))
    return {every[place]: style for place, style in zip(spread(len(every), len(STYLES)), STYLES, strict=False)}


def _scatter(
    axis: Axes,
    points: NDArray[np.float64],
    identities: Sequence[int | str | None],
    styles: Mapping[int | str | None, tuple[str, str]],
) -> None:
    rest = np.array([identity not in styles for identity in identities])
    axis.scatter(*points[rest].T, s=6, color=PALE, linewidths=0)
    for identity, (color, marker) in styles.items():
        own = points[np.array(identities) == identity]
        axis.scatter(*own.T, s=22, color=color, marker=marker, edgecolors="white", linewidths=0.4, label=str(identity))
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_color("#999999")
    axis.margins(0.08)
