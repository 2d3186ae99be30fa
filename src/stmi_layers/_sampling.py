"""Bilinear samples of token maps as products with weights: any dtype, second derivatives, no scatter in backward."""

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32, without_autocast


def bilinear_samples(tokens: Tensor, positions: Tensor, grid: tuple[int, int]) -> Tensor:
    """Sample (batch patches dim), row by row a map of the size `grid`, at (batch samples 2) rows and columns.

    A position outside the grid moves to the border, where it gets no gradient.
    """
    with without_autocast(tokens):
        rows, columns = _taps(positions[..., 0], grid[0]), _taps(positions[..., 1], grid[1])
        weights = (rows[..., :, None] * columns[..., None, :]).flatten(2)
        return weights.to(tokens.dtype) @ tokens


def _taps(places: Tensor, size: int) -> Tensor:
    """Shares of the `size` rows or columns at `places`; two neighbours have all."""
    places = at_least_float32(places).clamp(0, size - 1)
    lower = places.detach().floor().clamp(max=max(size - 2, 0))
    upper_share = (places - lower)[..., None]
    step = torch.arange(size, device=places.device, dtype=places.dtype) - lower[..., None]
    return torch.where(step == 0, 1 - upper_share, 0.0) + torch.where(step == 1, upper_share, 0.0)
