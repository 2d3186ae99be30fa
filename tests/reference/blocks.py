"""A pre-norm transformer block as loops over single tokens; masked tokens stay zero and no token attends to them."""

import math

import torch
from torch import Tensor

from reference import layer_norm, softmax


def self_attention(
    tokens: list[Tensor], kept: list[bool], weight: Tensor, out: Tensor, bias: Tensor | None, heads: int
) -> list[Tensor]:
    dim = len(tokens[0])
    width = dim // heads
    projected = [weight @ token for token in tokens]
    results = []
    for i, row in enumerate(projected):
        if not kept[i]:
            results.append(torch.zeros_like(tokens[i]))
            continue
        read = []
        for h in range(heads):
            query, key, value = (slice(part * dim + h * width, part * dim + (h + 1) * width) for part in range(3))
            others = [other for j, other in enumerate(projected) if kept[j]]
            weights = softmax([(row[query] * other[key]).sum() / math.sqrt(width) for other in others])
            read.append(sum(weight * other[value] for weight, other in zip(weights, others, strict=True)))
        result = out @ torch.cat(read)
        results.append(result if bias is None else result + bias)
    return results


def block(tokens: list[Tensor], kept: list[bool], state: dict[str, Tensor], heads: int) -> list[Tensor]:
    """The block of one sample, from its state dict; biases that are not in it do not exist."""
    bias = state.get("out_proj.bias")
    normed = [layer_norm(token, state["norm_attention.weight"], state["norm_attention.bias"]) for token in tokens]
    read = self_attention(normed, kept, state["in_proj_weight"], state["out_proj.weight"], bias, heads)
    results = []
    for i, token in enumerate(tokens):
        if not kept[i]:
            results.append(torch.zeros_like(token))
            continue
        token = token + read[i]
        inner = state["ffn.0.weight"] @ layer_norm(token, state["norm_ffn.weight"], state["norm_ffn.bias"])
        inner = inner + state.get("ffn.0.bias", 0.0)
        inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
        results.append(token + state["ffn.2.weight"] @ inner + state.get("ffn.2.bias", 0.0))
    return results


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
