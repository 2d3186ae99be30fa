"""Experts over token sequences, one token, expert and modality at a time."""

import math

import torch
from torch import Tensor

from reference import softmax


def network(token: Tensor, state: dict[str, Tensor], e: int) -> Tensor:
    """The feed-forward network of expert `e`, with its residual."""
    variance = ((token - token.mean()) ** 2).mean()
    row = (token - token.mean()) / (variance + 1e-5).sqrt()
    row = row * state["experts.norm_weight"][e] + state["experts.norm_bias"][e]
    hidden = state["experts.expand_weight"][e] @ row + state["experts.expand_bias"][e]
    hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
    return token + state["experts.contract_weight"][e] @ hidden + state["experts.contract_bias"][e]


def cosine(a: Tensor, b: Tensor) -> Tensor:
    lengths = (a * a).sum().sqrt() * (b * b).sum().sqrt()
    return (a * b).sum() / lengths


def modulation(
    patches: Tensor, text: Tensor | None, present: Tensor, has_text: Tensor, state: dict[str, Tensor], experts: int
) -> list[list[list[list[Tensor]]]]:
    """The weight of every patch for every expert, as nested lists: sample, expert, modality, patch."""
    batch, modalities, count, _ = patches.shape
    zero = torch.zeros((), dtype=torch.float64)
    result = []
    for b in range(batch):
        of_sample = [[[zero] * count for _ in range(modalities)] for _ in range(experts)]
        for e in range(experts):
            for n in range(count):
                read = text is not None and bool(has_text[b])
                likeness = [
                    cosine(patches[b, m, n], text[b, e, m]) if read and present[b, m] else zero
                    for m in range(modalities)
                ]
                hidden = state["mix_expand.weight"] @ torch.stack(likeness) + state["mix_expand.bias"]
                mixed = state["mix_contract.weight"] @ (1 / (1 + (-hidden).exp())) + state["mix_contract.bias"]
                for m in range(modalities):
                    if present[b, m]:
                        logit = (state["route_weight"][m] * patches[b, m, n]).sum() + state["route_bias"][m]
                        route = 1 / (1 + (-logit).exp())
                        of_sample[e][m][n] = route + mixed[m] if read else route
        result.append(of_sample)
    return result


def text_experts(patches: Tensor, weights, present: Tensor, state: dict[str, Tensor]) -> Tensor:
    rows = []
    for b in range(patches.shape[0]):
        for e in range(len(weights[b])):
            for m in range(patches.shape[1]):
                for n in range(patches.shape[2]):
                    there = present[b, m]
                    token = patches[b, m, n] * weights[b][e][m][n] if there else None
                    rows.append(network(token, state, e) if there else torch.zeros(patches.shape[3]).double())
    return torch.stack(rows).reshape(patches.shape[0], -1, patches.shape[1] * patches.shape[2], patches.shape[3])


def shared_experts(patches: Tensor, present: Tensor, state: dict[str, Tensor]) -> Tensor:
    experts = len(state["router.bias"])
    rows = []
    for b in range(patches.shape[0]):
        for e in range(experts):
            for m in range(patches.shape[1]):
                for n in range(patches.shape[2]):
                    if not present[b, m]:
                        rows.append(torch.zeros(patches.shape[3], dtype=torch.float64))
                        continue
                    token = patches[b, m, n]
                    gates = softmax(list(state["router.weight"] @ token + state["router.bias"]))
                    rows.append(gates[e] * network(token, state, e))
    return torch.stack(rows).reshape(patches.shape[0], experts, -1, patches.shape[3])
