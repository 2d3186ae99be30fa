"""Token permutation as loops over single tokens, in the order of the paper: every patch is projected."""

import math

import torch
from torch import Tensor

from reference import layer_norm, softmax


def rotate(token: Tensor, patches: list[Tensor], state: dict[str, Tensor], heads: int) -> Tensor:
    """One global token reads patches, then passes its feed-forward network."""
    width = len(token) // heads
    zeros = torch.zeros_like(token)
    query = state["query.weight"] @ layer_norm(token, state["norm_globals.weight"], state["norm_globals.bias"])
    keys = [state["key.weight"] @ layer_norm(patch, state["key_scale"], zeros) for patch in patches]
    values = [state["value.weight"] @ patch for patch in patches]
    read = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        weights = softmax([(query[part] * key[part]).sum() / math.sqrt(width) for key in keys])
        read.append(sum(weight * value[part] for weight, value in zip(weights, values, strict=True)))
    token = token + state["out_proj.weight"] @ torch.cat(read) + state["out_proj.bias"]
    inner = state["ffn.0.weight"] @ layer_norm(token, state["norm_ffn.weight"], state["norm_ffn.bias"])
    inner = inner + state["ffn.0.bias"]
    inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
    return token + state["ffn.2.weight"] @ inner + state["ffn.2.bias"]


def permuted_tokens(
    tokens: Tensor, patches: Tensor, present: Tensor, state: dict[str, Tensor], heads: int
) -> list[Tensor]:
    """The global tokens after every stage, zero where a modality is absent."""
    modalities = tokens.shape[1]
    found = []
    current = [list(sample) for sample in tokens]
    for stage in range(modalities):
        own = {name.split(".", 2)[2]: value for name, value in state.items() if name.startswith(f"stages.{stage}.")}
        following = [list(sample) for sample in current]
        for b in range(len(tokens)):
            for m in range(modalities):
                other = (m + stage + 1) % modalities
                if present[b, m] and present[b, other]:
                    following[b][m] = rotate(current[b][m], list(patches[b, other]), own, heads)
        current = following
        rows = [
            token if present[b, m] else torch.zeros_like(token)
            for b, sample in enumerate(current)
            for m, token in enumerate(sample)
        ]
        found.append(torch.stack(rows).reshape(tokens.shape))
    return found
