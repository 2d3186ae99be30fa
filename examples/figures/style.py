"""Colours for colour-blind readers, and functions that all figures share for images, masks and files."""

from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from stmi_layers.training.files import write_whole

# Okabe and Ito's palette without black and yellow, which are invisible on dark and on white.
COLORS: tuple[str, ...] = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9")
RIGHT, WRONG, QUERY, OUTLINE, PALE = "#009E73", "#D55E00", "#0072B2", "#FFD92F", "#C8C8C8"


def save(figure: Figure, *paths: Path, dpi: int = 110) -> list[Path]:
    """Write a figure to every path, in the format of its suffix; equal figures give equal bytes."""
    for path in paths:
        kind = path.suffix[1:]
        metadata = {"Date": None} if kind == "svg" else None
        with mpl.rc_context({"svg.hashsalt": "stmi-layers"}), write_whole(path) as file:
            figure.savefig(file, format=kind, dpi=dpi, metadata=metadata, facecolor="white")
    return list(paths)


def spread(length: int, count: int) -> list[int]:
    """Return at most `count` indices into a sequence of this length, evenly from the first to the last."""
    return np.linspace(0, length - 1, min(count, length)).astype(int).tolist()


def bare(axis: Axes) -> None:
    """Remove ticks and frame."""
    axis.set(xticks=[], yticks=[])
    axis.spines[:].set_visible(False)


def show_image(axis: Axes, image: NDArray[np.uint8], mask: NDArray[np.bool_], *, faded: bool = False) -> None:
    """Show an image (height, width, 3) with its mask outlined; `faded` shows it grey, below a map."""
    if faded:
        grey = image.mean(axis=2)
        axis.imshow(grey, cmap="gray", vmin=0, vmax=255, interpolation="none")
    else:
        axis.imshow(image, interpolation="none")
    outline(axis, mask)
    bare(axis)


def outline(axis: Axes, mask: NDArray[np.bool_], *, color: str = OUTLINE) -> None:
    """Draw the edge of a mask; an empty or full mask has no edge."""
    if 0 < mask.mean() < 1:
        axis.contour(mask.astype(float), levels=[0.5], colors=[color], linewidths=1.0)


def show_absent(axis: Axes, size: tuple[int, int]) -> None:
    """Mark a modality that the item lacks; `size` is height and width of the other images."""
    axis.imshow(np.full((*size, 3), 240, np.uint8), interpolation="none")
    axis.text(size[1] / 2, size[0] / 2, "absent", ha="center", va="center", fontsize=8, color="#666666")
    bare(axis)


def show_weights(axis: Axes, weights: NDArray[np.float32], size: tuple[int, int], most: float) -> None:
    """Draw weights per patch (rows, columns) over an image of `size`, brighter and denser up to the weight `most`."""
    share = np.clip(weights / most, 0, 1) if most > 0 else np.zeros_like(weights)
    colors = mpl.colormaps["magma"](share)
    colors[..., 3] = 0.25 + 0.65 * share
    # Edges of the image, not centres of its outermost pixels.
    extent = (-0.5, size[1] - 0.5, size[0] - 0.5, -0.5)
    axis.imshow(colors, extent=extent, interpolation="nearest")
