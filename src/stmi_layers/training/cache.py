"""Pixels of a dataset at the size of the network, kept in one block of memory on request."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from stmi_layers.training.images import UnreadableError, read_mask, read_upright
from stmi_layers.training.record import Item, Source, path_of
from stmi_layers.training.settings import Range


class Pixels:
    """Images and masks of items, decoded and resized.

    Args:
        items: items of the dataset.
        size: height and width in pixels.
        masks: whether masks are read from files.
        keep: keep decoded images in a block of 3 * height * width bytes per image, and masks in a second block of
            height * width bytes per mask. Memory is taken as the blocks fill.
    """

    def __init__(self, items: Sequence[Item], size: tuple[int, int], *, masks: bool, keep: bool) -> None:
        self.size, self._read_masks = size, masks
        self._images = _Block([source for item in items for source in item.images], (3, *size), torch.uint8, keep=keep)
        self._masks = _Block(
            [path for item in items for path in item.masks] if masks else [], size, torch.bool, keep=keep
        )

    def image(self, source: Source | None, bounds: Range | None) -> Tensor:
        """Return an image as bytes (3, height, width), black if `source` is None.

        Raises:
            UnreadableError: when the file cannot be read any more.
        """
        if source is None:
            return torch.zeros(3, *self.size, dtype=torch.uint8)
        return self._images.get(source, lambda: self._decode_image(source, bounds))

    def mask(self, path: Path | None) -> Tensor:
        """Return a mask as Bool (height, width), all True if `path` is None or masks are not read."""
        if path is None or not self._read_masks:
            return torch.ones(self.size, dtype=torch.bool)
        return self._masks.get(path, lambda: self._decode_mask(path))

    def _decode_image(self, source: Source, bounds: Range | None) -> Tensor:
        height, width = self.size
        try:
            resized = read_upright(source, bounds).resize((width, height), Image.Resampling.BILINEAR)
        except Exception as error:  # whatever a damaged file makes of a decoder
            raise UnreadableError(f"{path_of(source)} cannot be read: {error}") from error
        # A single channel becomes three equal channels after resizing.
        pixels = torch.from_numpy(np.array(resized))
        return pixels.expand(3, -1, -1) if pixels.dim() == 2 else pixels.permute(2, 0, 1)

    def _decode_mask(self, path: Path) -> Tensor:
        height, width = self.size
        try:
            mask = Image.fromarray(read_mask(path).view(np.uint8))
        except Exception as error:
            raise UnreadableError(f"{path} cannot be read: {error}") from error
        # Pillow takes the pixel at the centre; the "nearest" of torch would move a mask by half a pixel.
        return torch.from_numpy(np.array(mask.resize((width, height), Image.Resampling.NEAREST))).bool()


class _Block:
    """Rows of one tensor by key, filled on first request."""

    def __init__(self, keys: Sequence, shape: tuple[int, ...], dtype: torch.dtype, *, keep: bool) -> None:
        distinct = dict.fromkeys(key for key in keys if key is not None) if keep else {}
        self._rows = {key: row for row, key in enumerate(distinct)}
        self._filled = bytearray(len(self._rows))
        # Not torch.empty: under deterministic algorithms it writes all of the memory.
        self._block = torch.from_numpy(np.empty((len(self._rows), *shape), bool if dtype == torch.bool else np.uint8))

    def get(self, key, read) -> Tensor:
        row = self._rows.get(key)
        if row is None:
            return read()
        if not self._filled[row]:
            self._block[row] = read()
            self._filled[row] = 1
        return self._block[row]
