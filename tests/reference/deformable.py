"""Deformable sampling of Signal as loops over single numbers (eq. 23-25)."""

import math

import torch
from torch import Tensor


def gelu(value: Tensor) -> Tensor:
    return value * (1 + torch.erf(value / math.sqrt(2))) / 2


def bilinear(tokens: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Mean of the tokens of one map, (rows, columns, dim), by what a square of one cell around the position covers."""
    result = 0 * tokens[0, 0]
    for y in range(tokens.shape[0]):
        for x in range(tokens.shape[1]):
            weight = (1 - (row - y).abs()).clamp(min=0) * (1 - (column - x).abs()).clamp(min=0)
            result = result + weight * tokens[y, x]
    return result


def moved(reference: float, offset: Tensor, reach: float | None, last: int) -> Tensor:
    """One coordinate of a position: kept inside in proportion, or cut off."""
    if reach is None:
        return (reference + offset).clamp(0, last)
    room = reference if offset < 0 else last - reference
    return reference + offset * min(1.0, room / reach if reach else 1.0)


def sampling(
    tokens: Tensor,
    state: dict[str, Tensor],
    kernel_size: int,
    stride: int,
    offset_range: float,
    points: str,
) -> tuple[Tensor, Tensor]:
    """Samples and positions of a batch of maps, from the state dict of the layer."""
    batch, *grid, dim = tokens.shape
    counts = [(size - kernel_size) // stride + 1 for size in grid]
    reaches = [offset_range / max(count - 1, 1) * (size - 1) / 2 for size, count in zip(grid, counts, strict=True)]
    samples, positions = [], []
    for b in range(batch):
        mixed = [
            [gelu(state["mix.weight"] @ tokens[b, y, x] + state["mix.bias"]) for x in range(grid[1])]
            for y in range(grid[0])
        ]
        for i in range(counts[0]):
            for j in range(counts[1]):
                window = state["windows.bias"]
                for y in range(kernel_size):
                    for x in range(kernel_size):
                        weight = state["windows.weight"][:, 0, y, x]
                        window = window + weight * mixed[i * stride + y][j * stride + x]
                offsets = torch.tanh(state["offset.weight"] @ gelu(window))
                place = []
                for axis, index in enumerate((i, j)):
                    reference = index * stride + (kernel_size - 1) / 2
                    if points == "released":
                        normalised = 2 * (index + 0.5) / (counts[axis] - 1) - 1
                        reference = (normalised + 1) / 2 * (grid[axis] - 1)
                    offset = offsets[axis % len(offsets)] * reaches[axis]
                    reach = reaches[axis] if points == "inside" else None
                    place.append(moved(reference, offset, reach, grid[axis] - 1))
                samples.append(bilinear(tokens[b], *place))
                positions.append(torch.stack(place))
    shape = (batch, *counts)
    return torch.stack(samples).reshape(*shape, dim), torch.stack(positions).reshape(*shape, 2)
