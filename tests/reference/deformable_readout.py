"""Cooperative deformable aggregation as float64 loops over single samples and numbers."""

import math

import torch
from torch import Tensor

from . import cross_attention


def sample(patches: Tensor, position: Tensor, grid: tuple[int, int]) -> Tensor:
    """One bilinear sample of one map (patches dim) at (row, column), the border holding what lies outside."""
    height, width = grid
    y, x = position[0].clamp(0, height - 1), position[1].clamp(0, width - 1)
    top, left = min(math.floor(y.item()), max(height - 2, 0)), min(math.floor(x.item()), max(width - 2, 0))
    total = torch.zeros(patches.shape[1], dtype=torch.float64)
    for row in range(top, min(top + 2, height)):
        for column in range(left, min(left + 2, width)):
            share = (y - top if row > top else 1 - (y - top)) * (x - left if column > left else 1 - (x - left))
            total = total + share * patches[row * width + column]
    return total


def gelu(number: Tensor) -> Tensor:
    return number * 0.5 * (1 + torch.erf(number / math.sqrt(2)))


def raw_offsets(patches: Tensor, state: dict[str, Tensor], grid: tuple[int, int], stride: int) -> Tensor:
    """(rows columns outputs) of one network for one sample; `patches` are (patches inputs)."""
    height, width = grid
    hidden = [gelu(state["project.weight"] @ patch + state["project.bias"]) for patch in patches]
    window = state["window.weight"]
    kernel = window.shape[-1]
    rows, columns = (height - kernel) // stride + 1, (width - kernel) // stride + 1
    result = []
    for i in range(rows):
        for j in range(columns):
            total = state["window.bias"]
            for a in range(kernel):
                for b in range(kernel):
                    total = total + window[:, 0, a, b] * hidden[(i * stride + a) * width + j * stride + b]
            result.append(state["point.weight"] @ gelu(total))
    return torch.stack(result).reshape(rows, columns, -1)


def sampled_cross_attention(
    queries: Tensor, patches: Tensor, positions: Tensor, grid: tuple[int, int], attention: tuple, present: Tensor | None
) -> Tensor:
    """What each query reads of the samples at `positions` (batch modalities samples 2)."""
    batch, modalities = patches.shape[:2]
    output = []
    for b in range(batch):
        there = [m for m in range(modalities) if present is None or present[b, m]]
        tokens = [sample(patches[b, m], position, grid) for m in there for position in positions[b, m]]
        if not tokens:
            output.append(torch.zeros_like(queries[b]))
            continue
        output.append(cross_attention(queries[b : b + 1], torch.stack(tokens)[None], *attention)[0])
    return torch.stack(output)
