"""The paper's equations as slow float64 loops over single numbers: what the layers are tested against.

Nothing here is shared with the library, and nothing is clever. Every function is differentiable.
"""

import math

import torch
from torch import Tensor


def softmax(row: list[Tensor]) -> list[Tensor]:
    highest = max(value.item() for value in row)
    powers = [(value - highest).exp() for value in row]
    return [power / sum(powers) for power in powers]


def modulated_attention(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float | None = None
) -> Tensor:
    """Eq. 3-8, one logit at a time; `alpha` and `beta` hold one entry, or one per head."""
    batch, heads, tokens, head_dim = query.shape
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    output = torch.zeros(batch, heads, tokens, head_dim, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            strength_up, strength_down = alpha[h % len(alpha)], beta[h % len(beta)]
            for i in range(tokens):
                logits = [(query[b, h, i] * key[b, h, j]).sum() for j in range(tokens)]
                highest, lowest = torch.stack(logits).amax(), torch.stack(logits).amin()
                modulated = []
                for j, logit in enumerate(logits):
                    both = 1.0 if foreground[b, i] and foreground[b, j] else 0.0
                    change = strength_up * both * (highest - logit) - strength_down * (1 - both) * (logit - lowest)
                    modulated.append((logit + change) * scale)
                for j, weight in enumerate(softmax(modulated)):
                    output[b, h, i] = output[b, h, i] + weight * value[b, h, j]
    return output


def token_foreground(mask: Tensor, grid: tuple[int, int], threshold: float, prefix_tokens: int) -> Tensor:
    """Eq. 2 with the area of every patch measured pixel by pixel."""
    batch, height, width = mask.shape
    rows, columns = grid
    result = torch.ones(batch, prefix_tokens + rows * columns, dtype=torch.bool)
    for b in range(batch):
        for r in range(rows):
            for c in range(columns):
                area = 0.0
                for y in range(height):
                    for x in range(width):
                        down = min((r + 1) * height, (y + 1) * rows) - max(r * height, y * rows)
                        across = min((c + 1) * width, (x + 1) * columns) - max(c * width, x * columns)
                        area += float(mask[b, y, x]) * max(down, 0) * max(across, 0)
                result[b, prefix_tokens + r * columns + c] = area >= threshold * height * width
    return result
