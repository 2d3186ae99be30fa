"""Selection and interaction of Signal as loops over single patches (eq. 5-18)."""

import math

import torch
from torch import Tensor

from reference import cross_attention, layer_norm


def highest(scores: list[tuple[float, int]], count: int) -> set[int]:
    """Places of the highest scores; of equal ones the first."""
    ranked = sorted(scores, key=lambda entry: (-entry[0], entry[1]))
    return {place for _, place in ranked[: max(count, 0)]}


def score(patch: Tensor, class_token: Tensor, state: dict[str, Tensor]) -> Tensor:
    query = state["query.weight"] @ class_token + state["query.bias"]
    return query @ (state["key.weight"] @ patch) / math.sqrt(len(patch))


def intra(patches: Tensor, class_tokens: Tensor, num: int, present: Tensor) -> Tensor:
    """Eq. 5-7."""
    batch, modalities, count, _ = patches.shape
    marked = torch.zeros(batch, modalities, count, dtype=torch.bool)
    for b in range(batch):
        for m in range(modalities):
            if present[b, m]:
                scores = [((patches[b, m, i] @ class_tokens[b, m]).item(), i) for i in range(count)]
                for i in highest(scores, num):
                    marked[b, m, i] = True
    return marked


def inter(
    patches: Tensor, class_tokens: Tensor, state: dict[str, Tensor], num: int, present: Tensor
) -> tuple[Tensor, Tensor]:
    """Eq. 8-13, and the attention that each patch gets from the class tokens of the other modalities."""
    batch, modalities, count, _ = patches.shape
    marked = torch.zeros(batch, modalities, count, dtype=torch.bool)
    samples = []
    for b in range(batch):
        there = [m for m in range(modalities) if present[b, m]]
        wanted = [[torch.zeros((), dtype=patches.dtype) for _ in range(count)] for _ in range(modalities)]
        for m in there:
            scores = {(n, i): score(patches[b, n, i], class_tokens[b, m], state) for n in there for i in range(count)}
            places = [(n, i) for n in there if n != m for i in range(count)]
            chosen = highest([(scores[place].item(), j) for j, place in enumerate(places)], (len(there) - 1) * num)
            for j in chosen:
                marked[b][places[j]] = True
            total = torch.stack(list(scores.values())).logsumexp(dim=0)
            for n, i in places:
                wanted[n][i] = wanted[n][i] + (scores[n, i] - total).exp()
        samples.append(torch.stack([torch.stack(row) for row in wanted]))
    return marked, torch.stack(samples)


def interaction(
    class_tokens: Tensor,
    patches: Tensor,
    gates: Tensor,
    present: Tensor,
    state: dict[str, Tensor],
    num_heads: int,
    hidden: bool,
) -> Tensor:
    """Eq. 15-18, from the state dict of the layer."""
    attention = (state["in_proj_weight"], state["in_proj_bias"], state["out_proj.weight"], state["out_proj.bias"])
    batch, modalities, count, _ = patches.shape
    output = 0 * class_tokens
    for b in range(batch):
        context = [
            gates[b, n, i] * patches[b, n, i]
            for n in range(modalities)
            for i in range(count)
            if present[b, n] and (not hidden or gates[b, n, i] != 0)
        ]
        for m in range(modalities):
            if not present[b, m]:
                continue
            token = class_tokens[b, m]
            read = cross_attention(token[None, None], torch.stack(context)[None], *attention, num_heads)[0, 0]
            token = layer_norm(token + read, state["norm_attention.weight"], state["norm_attention.bias"])
            inner = state["ffn.0.weight"] @ token + state["ffn.0.bias"]
            inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
            inner = state["ffn.2.weight"] @ inner + state["ffn.2.bias"]
            output[b, m] = layer_norm(token + inner, state["norm_ffn.weight"], state["norm_ffn.bias"])
    return output
