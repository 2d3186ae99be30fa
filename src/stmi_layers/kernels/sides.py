"""A mask of tokens as numbers that broadcast with logits, computed once for all blocks of a network."""

from typing import NamedTuple

import torch
from torch import Tensor

SHORT = 256  # tokens of an image of 256 x 128 pixels in patches of 16 x 16, and some more


class Sides(NamedTuple):
    """Sides that rows and columns are on, batch 1 rows 1 and batch 1 1 columns, 1 for yes and 0 for no."""

    rows: Tensor  # the row is in the foreground
    outward: Tensor  # the column is in the background


def sides_of(foreground: Tensor, dtype: torch.dtype) -> Sides:
    """Return the sides of a mask; of one that was prepared, those that it carries."""
    carried: Sides | None = getattr(foreground, "sides", None)
    if carried is not None and carried.rows.dtype is dtype:
        return carried
    rows = foreground.to(dtype)[:, None, :, None]
    return Sides(rows, 1 - rows.mT)


def prepare(foreground: Tensor) -> Tensor:
    """Let a mask carry its sides where they take little room: for a network whose blocks all read it, unchanged."""
    if foreground.is_cpu and foreground.shape[1] <= SHORT:
        foreground.sides = sides_of(foreground, torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
    return foreground
