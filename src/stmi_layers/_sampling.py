"""Bilinear samples of token maps as products with weights: any dtype, second derivatives, no scatter in backward."""

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32, without_autocast


def bilinear_samples(tokens: Tensor, positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sample (batch patches dim), row by row a map of the size `grid`, at (batch samples 2) rows and columns.

    The product is in the dtype of the tokens, which half precision computes faster than `sample_tokens`, and rounds.
    """
    with without_autocast(tokens):
        return bilinear_weights(at_least_float32(positions), grid).to(tokens.dtype) @ tokens


def bilinear_weights(positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return the shares of all tokens of a map at (batch samples 2) rows and columns, (batch samples tokens).

    A position outside the grid moves to the border, where it gets no gradient.
    """
    rows, columns = (_axis_weights(positions[..., axis], grid[axis]) for axis in (0, 1))
    return (rows[..., :, None] * columns[..., None, :]).flatten(2)


def _axis_weights(positions: Tensor, size: int) -> Tensor:
    """Weights of the `size` rows or columns at every position, (batch samples size): two next to it, summing to 1."""
    if size == 1:
        return torch.ones_like(positions)[..., None]
    positions = positions.clamp(0, size - 1)
    below = positions.detach().floor().clamp(max=size - 2)
    share = (positions - below)[..., None]
    index = torch.arange(size, device=positions.device) - below[..., None]
    return torch.where(index == 0, 1 - share, torch.where(index == 1, share, 0.0))
