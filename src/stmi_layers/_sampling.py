"""Bilinear sampling of token maps as a product with weights: any dtype, second derivatives, no scatter in backward."""

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32, without_autocast


def bilinear_samples(tokens: Tensor, positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sample a map of `tokens` (batch patches dim), stored row by row, at `positions` (batch samples 2).

    Positions are row and column in patches. The product runs in the dtype of the tokens: half precision is faster
    here than in `sample_tokens`, and it rounds.
    """
    with without_autocast(tokens):
        return bilinear_weights(at_least_float32(positions), grid).to(tokens.dtype) @ tokens


def bilinear_weights(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the weights of all tokens of a map, (batch samples tokens), at `positions` (batch samples 2).

    A position outside the grid moves to the border, where it gets no gradient.
    """
    rows, columns = (_axis_weights(positions[..., axis], grid[axis]) for axis in (0, 1))
    return (rows[..., :, None] * columns[..., None, :]).flatten(2)


def _axis_weights(positions: Tensor, size: int) -> Tensor:
    """Return weights of all rows or columns, (batch samples size); the two next to a position share a weight of 1."""
    if size == 1:
        return torch.ones_like(positions)[..., None]
    positions = positions.clamp(0, size - 1)
    below = positions.detach().floor().clamp(max=size - 2)
    share = (positions - below)[..., None]
    index = torch.arange(size, device=positions.device) - below[..., None]
    return torch.where(index == 0, 1 - share, torch.where(index == 1, share, 0.0))
