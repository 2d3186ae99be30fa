"""Reconstruction of modalities from one another, one sample and one token at a time."""

import torch
from torch import Tensor

from reference.blocks import block, part


def translate(tokens: Tensor, source: int, target: int, state: dict[str, Tensor], heads: int, depth: int) -> Tensor:
    """Tokens of one sample, (tokens dim)."""
    rows = list(tokens)
    for number in range(depth):
        rows = block(rows, [True] * len(rows), part(state, f"chains.{source}_to_{target}.{number}."), heads)
    return torch.stack(rows)


def fill(tokens: Tensor, present: Tensor, state: dict[str, Tensor], heads: int, depth: int) -> Tensor:
    samples = []
    for b, sample in enumerate(tokens):
        there = [m for m in range(len(sample)) if present[b, m]]
        for k in range(len(sample)):
            if present[b, k]:
                samples.append(sample[k])
            elif there:
                made = [translate(sample[m], m, k, state, heads, depth) for m in there]
                samples.append(sum(made) / len(made))
            else:
                samples.append(torch.zeros_like(sample[k]))
    return torch.stack(samples).reshape(tokens.shape)


def loss(
    tokens: Tensor, present: Tensor, state: dict[str, Tensor], heads: int, depth: int, detach_targets: bool = False
) -> Tensor:
    total = torch.zeros((), dtype=tokens.dtype)
    modalities = tokens.shape[1]
    for m in range(modalities):
        for k in range(modalities):
            both = [b for b in range(len(tokens)) if m != k and present[b, m] and present[b, k]]
            for b in both:
                target = tokens[b, k].detach() if detach_targets else tokens[b, k]
                difference = translate(tokens[b, m], m, k, state, heads, depth) - target
                total = total + (difference**2).sum() / (difference.numel() * len(both))
    return total
