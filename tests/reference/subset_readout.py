"""Hierarchical decoupling as its equations state it: keys and values of all tokens, subset by subset."""

from itertools import combinations

import torch
from torch import Tensor

from reference import cross_attention


def subset_readout(tokens: Tensor, present: Tensor, state: dict[str, Tensor], num_heads: int, drop: bool) -> Tensor:
    batch, modalities, _, dim = tokens.shape
    results = []
    subsets = [chosen for size in range(1, modalities + 1) for chosen in combinations(range(modalities), size)]
    for s, members in enumerate(subsets):
        key_bias = torch.linspace(-3, 2, dim, dtype=torch.float64)  # any: it must not matter
        attention = (
            torch.cat([state["query_weight"][s], state["key_weight"][s], state["value_weight"][s]]),
            torch.cat([state["query_bias"][s], key_bias, state["value_bias"][s]]),
            state["out_weight"][s],
            state["out_bias"][s],
        )
        rows = []
        for b in range(batch):
            there = [m for m in members if present[b, m]]
            if not there or (drop and len(there) < len(members)):
                rows.append(torch.zeros(dim, dtype=torch.float64))
                continue
            context = torch.cat([tokens[b, m] for m in there])[None]
            rows.append(cross_attention(state["queries"][s][None, None], context, *attention, num_heads)[0, 0])
        results.append(torch.stack(rows))
    return torch.stack(results, dim=1)
