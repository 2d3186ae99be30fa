"""Token masks as numbers that broadcast with logits, computed once for all blocks of a network."""

from typing import NamedTuple

import torch
from torch import Tensor

SHORT = 256  # more than the 129 tokens of 256 x 128 pixels in patches of 16 x 16


class Sides(NamedTuple):
    """A mask as numbers: 1 where the comment of the field holds, otherwise 0."""

    rows: Tensor  # (batch 1 rows 1): the row is in the foreground
    outward: Tensor  # (batch 1 1 columns): the column is in the background


def sides_of(foreground: Tensor, dtype: torch.dtype) -> Sides:
    """Return the sides of a mask; a mask after `prepare` holds its sides already."""
    carried: Sides | None = getattr(foreground, "sides", None)
    if carried is not None and carried.rows.dtype is dtype:
        return carried
    rows = foreground.to(dtype)[:, None, :, None]
    return Sides(rows, 1 - rows.mT)


def prepare(foreground: Tensor) -> Tensor:
    """Store the sides of a short mask on the mask itself, for a network whose blocks all read the mask unchanged."""
    if foreground.is_cpu and foreground.shape[1] <= SHORT:
        foreground.sides = sides_of(foreground, torch.float32)  # pyright: ignore[reportAttributeAccessIssue]
    return foreground
