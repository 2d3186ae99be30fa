"""Gated experts, one sample, feature and head at a time; batch norm over the valid rows."""

import math

import torch
from torch import Tensor

from reference import softmax


def quick_gelu(value: Tensor) -> Tensor:
    return value / (1 + (-1.702 * value).exp())


def masked_batch_norm(rows: list[Tensor | None], weight: Tensor, bias: Tensor, running: tuple[Tensor, Tensor] | None):
    """Normalise the rows that are not None, by their own statistics or by `running` ones."""
    there = [row for row in rows if row is not None]
    if running is None:
        mean = sum(there) / len(there)
        variance = sum((row - mean) ** 2 for row in there) / len(there)
    else:
        mean, variance = running
    return [None if row is None else (row - mean) / (variance + 1e-5).sqrt() * weight + bias for row in rows]


def gated_experts(features: Tensor, present: Tensor, state: dict[str, Tensor], num_heads: int, training: bool):
    """Results and gates; `state` holds parameters and, for evaluation, running statistics."""
    batch, count, dim = features.shape
    width = dim // num_heads

    def running(norm: str, part: slice = slice(None)):
        if training:
            return None
        return state[f"{norm}.running_mean"][part], state[f"{norm}.running_var"][part]

    queries = []
    for b in range(batch):
        if not present[b].any():
            queries.append(None)
            continue
        row = torch.cat([features[b, s] if present[b, s] else torch.zeros(dim).double() for s in range(count)])
        queries.append(quick_gelu(state["join.weight"] @ row + state["join.bias"]))
    names = ("norm_joined.weight", "norm_joined.bias")
    queries = masked_batch_norm(queries, *(state[name] for name in names), running("norm_joined"))

    gates = torch.zeros(batch, num_heads, count, dtype=torch.float64)
    for b in range(batch):
        for h in range(num_heads):
            part, members = slice(h * width, (h + 1) * width), [s for s in range(count) if present[b, s]]
            if members:
                query = (state["query_weight"] @ queries[b])[part]
                keys = [(state["key_weight"] @ features[b, s])[part] for s in members]
                weights = softmax([(query * key).sum() / math.sqrt(width) for key in keys])
                for s, weight in zip(members, weights, strict=True):
                    gates[b, h, s] = gates[b, h, s] + weight

    output = torch.zeros_like(features)
    for s in range(count):
        for h in range(num_heads):
            part, channels = slice(h * width, (h + 1) * width), slice(s * dim + h * width, s * dim + (h + 1) * width)
            matrix, bias = state["expert_weight"][s, h], state["expert_bias"][s, h]
            rows = [quick_gelu(matrix @ features[b, s, part] + bias) if present[b, s] else None for b in range(batch)]
            affine = (state[f"norm_experts.{name}"][channels] for name in ("weight", "bias"))
            for b, row in enumerate(masked_batch_norm(rows, *affine, running("norm_experts", channels))):
                if row is not None:
                    filled = torch.zeros_like(output)
                    filled[b, s, part] = 1
                    output = output + filled * torch.nn.functional.pad(
                        gates[b, h, s] * row, (h * width, dim - (h + 1) * width)
                    )
    return output, gates
