"""Masks as sets of pixels: one mask from several modalities, one region without holes, overlap of two masks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from PIL import Image

Mask = NDArray[np.bool_]
Probability = NDArray[np.floating]


def vote(probabilities: Float[np.ndarray, "modalities height width"]) -> Bool[np.ndarray, "height width"]:
    """Vote: a pixel is foreground when its mean probability over the modalities exceeds one half.

    A modality counts by its certainty. If all modalities are certain, the majority decides.

    >>> vote(np.array([[[0.9, 0.9]], [[0.6, 0.6]], [[0.2, 0.0]]]))
    array([[ True, False]])
    """
    return probabilities.mean(axis=0) > 0.5


def clean(mask: Bool[np.ndarray, "height width"]) -> Bool[np.ndarray, "height width"]:
    """Keep the largest region and fill its holes; of regions of equal size keep the first from the top.

    Pixels that share a side belong to one region. A hole is background that does not reach the border of the image
    through shared sides.
    """
    from scipy import ndimage

    labelled: Any = ndimage.label(mask)
    labels, count = labelled
    if count == 0:
        return mask.copy()
    sizes = np.bincount(labels.ravel())[1:]
    return np.asarray(ndimage.binary_fill_holes(labels == 1 + sizes.argmax()))


def intersection_over_union(one: Bool[np.ndarray, "height width"], other: Bool[np.ndarray, "height width"]) -> float:
    """Compute the intersection over union in [0, 1]; 1 for two empty masks."""
    union = (one | other).sum()
    return float((one & other).sum() / union) if union else 1.0


def stretch(probability: Probability, size: tuple[int, int]) -> Probability:
    """Resize a probability map; modalities may differ in size, but must show the same view."""
    if probability.shape == size:
        return probability
    image = Image.fromarray(probability.astype(np.float32))
    return np.array(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def stretch_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """Resize a mask by the nearest pixel."""
    if mask.shape == size:
        return mask
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def frame_border(mask: Mask) -> Mask:
    """Return the outermost pixels, each once."""
    outermost = np.ones_like(mask)
    outermost[1:-1, 1:-1] = False
    return mask[outermost]


def mean_overlap(masks: Sequence[Mask]) -> float | None:
    """Compute the mean intersection over union of all pairs; None without a pair."""
    pairs = [(one, other) for index, one in enumerate(masks) for other in masks[:index]]
    return float(np.mean([intersection_over_union(*pair) for pair in pairs])) if pairs else None
