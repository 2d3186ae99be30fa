"""Masks of the synthetic set: exact masks, damaged to a given extent."""

import numpy as np
import torch
from numpy.random import Generator
from numpy.typing import NDArray

from examples.prepare.synthetic.identities import CORRUPTIONS
from examples.prepare.synthetic.sensors import smooth_field
from stmi_layers.training.transforms import erode

Mask = NDArray[np.bool_]


def corrupt_mask(mask: Mask, kind: str, level: float, rng: Generator) -> Mask:
    """Damage an exact mask to a given extent.

    With n foreground pixels, `level`·n pixels change: the outermost of the figure ("eroded"), the nearest around it
    ("dilated"), blobs inside ("holes") or anywhere outside ("false_foreground"). So the intersection over union is
    1 - level if pixels are removed and 1 / (1 + level) if pixels are added. "empty" blanks the mask with probability
    `level`.
    """
    if kind not in CORRUPTIONS[:-1]:
        raise ValueError(f"kind must be one of {', '.join(CORRUPTIONS[:-1])}; received {kind!r}")
    if not 0 <= level <= 1:
        raise ValueError(f"level must lie in [0, 1]; received {level}")
    chance, blobs = rng.uniform(), smooth_field(rng, (mask.shape[0], mask.shape[1]), cells=8)
    if kind in ("none", "empty"):
        return mask & (kind == "none" or chance >= level)
    removes = kind in ("eroded", "holes")
    pixels = mask if removes else ~mask
    order = blobs if kind in ("holes", "false_foreground") else _depth(pixels) + 0.2 * blobs
    first = np.argsort(np.where(pixels, order, np.inf), axis=None, kind="stable")
    damaged = mask.copy()
    damaged.flat[first[: min(round(level * mask.sum()), int(pixels.sum()))]] = not removes
    return damaged


def _depth(mask: Mask) -> NDArray[np.floating]:
    """Count the steps of erosion that each pixel of a mask survives."""
    depth, left = np.zeros(mask.shape), torch.from_numpy(mask)
    for _ in range(max(mask.shape)):
        depth += left.numpy()
        left = erode(left, 1, diagonals=False)
    return depth
