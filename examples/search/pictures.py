"""Images of items for the page, and the masks that the model was given."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from examples.images import classical_mask
from examples.search.page import Draw, Picture
from stmi_layers.training.dataset import FROM_FILES
from stmi_layers.training.images import read_image, read_mask
from stmi_layers.training.record import Item, Source


def pictures(ranges: Mapping[str, Any], modalities: Sequence[str], masks: str) -> Draw:
    """Return a function that reads the images and masks of an item.

    Args:
        ranges: counts that become black and white in deep images, by modality.
        modalities: names of the modalities of an item.
        masks: masks that the model was given. "classical" masks are made again, and masks in files are read; other
            masks are not outlined.
    """
    bounds = [ranges.get(name) for name in modalities]

    def draw(item: Item) -> Picture:
        images = [_read(source, one) for source, one in zip(item.images, bounds, strict=True)]
        if masks == "classical":
            made = _made(images)
            return images, [None if image is None else made for image in images]
        if masks not in FROM_FILES:
            return images, [None] * len(images)
        return images, [_outline(path) for path in item.masks]

    return draw


def _read(source: Source | None, bounds: Any) -> Image.Image | None:
    """Read an image; grey if its file is gone since the extraction."""
    if source is None:
        return None
    try:
        return read_image(source, bounds)
    except Exception:  # whatever a damaged file does to a decoder
        return Image.new("RGB", (64, 64), (128, 128, 128))


def _outline(path: Path | None) -> NDArray[np.bool_] | None:
    """Read a mask; None if its file is gone."""
    try:
        return None if path is None else read_mask(path)
    except Exception:
        return None


def _made(images: Sequence[Image.Image | None]) -> NDArray[np.bool_]:
    there = [np.array(image.resize((64, 64), Image.Resampling.BILINEAR)) for image in images if image is not None]
    stacked = torch.from_numpy(np.stack(there)).permute(0, 3, 1, 2) / 255
    return classical_mask(stacked, torch.ones(len(there), dtype=torch.bool)).numpy()
