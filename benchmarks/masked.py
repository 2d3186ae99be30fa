"""Masked aggregation and rollout (EDITOR), against the formulas as written: all tokens, and the whole product."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import MaskedAggregation, attention_rollout

BATCH, MODALITIES, PATCHES, KEPT, DIM, HEADS, LAYERS = 8, 3, 128, 40, 512, 8, 12


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare a training step with 40 of 128 patches kept, and the rollout of one modality through twelve layers."""
    problem = Aggregation(device)
    yield Comparison(
        name=f"masked aggregation, {KEPT} of {PATCHES} kept, forward and backward",
        contenders={
            "as written": Contender(lambda: problem.run(written_aggregation)),
            "ours": Contender(
                lambda: problem.run(lambda layer, tokens, keep: layer(tokens, keep)),
                lambda: problem.run(written_aggregation, exact=True),
            ),
        },
        targets=(Target("time", 0.4), Target("memory", 1.0)),
        threads=1,
    )
    generator = torch.Generator().manual_seed(0)
    shape = (BATCH, HEADS, PATCHES + 1, PATCHES + 1)
    maps = [torch.randn(shape, generator=generator).softmax(-1).to(device) for _ in range(LAYERS)]
    yield Comparison(
        name=f"rollout, {LAYERS} layers of {PATCHES + 1} tokens, forward",
        contenders={
            "whole product": Contender(lambda: written_rollout(maps)),
            "ours": Contender(
                lambda: (attention_rollout(*maps),), lambda: written_rollout([attention.double() for attention in maps])
            ),
            "reading the maps once": Contender(lambda: tuple(attention.sum() for attention in maps)),
        },
        targets=(Target("time", 0.05), Target("memory", 1.0)),
        threads=1,
    )


class Aggregation:
    """Tokens of which equally many are kept in every sample, including the global token."""

    def __init__(self, device: str) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (BATCH, MODALITIES, PATCHES + 1, DIM)
        self.tokens, self.upstream = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
        scores = torch.rand(BATCH, PATCHES, generator=generator)
        kept = torch.zeros(BATCH, PATCHES, dtype=torch.bool).scatter(1, scores.topk(KEPT).indices, True)
        self.keep = F.pad(kept, (1, 0), value=True)[:, None].expand(-1, MODALITIES, -1).contiguous().to(device)
        self.layer = MaskedAggregation(DIM, MODALITIES, num_heads=HEADS, device=device)

    def run(self, compute: Callable[[Any, Tensor, Tensor], Tensor], exact: bool = False) -> Outputs:
        layer = copy.deepcopy(self.layer).double() if exact else self.layer
        tokens = (self.tokens.double() if exact else self.tokens).detach().requires_grad_()
        result = compute(layer, tokens, self.keep)
        leaves = [tokens, *layer.parameters()]
        return result.detach(), *torch.autograd.grad(result, leaves, self.upstream.to(result.dtype))


def written_aggregation(layer: MaskedAggregation, tokens: Tensor, keep: Tensor) -> Tensor:
    """Compute all tokens, multiplied by the mask wherever it matters."""
    given = (tokens * keep[..., None]).unbind(1)
    kept = keep.unbind(1)
    done = [written_block(*items) for items in zip(layer.blocks, given, kept, strict=True)]
    everyone = keep.flatten(1)
    joint = layer.norm(written_block(layer.joint, torch.cat(done, dim=1), everyone)) * everyone[..., None]
    return joint.unflatten(1, keep.shape[1:])


def written_block(block: Any, tokens: Tensor, keep: Tensor) -> Tensor:
    packed = F.linear(block.norm_attention(tokens) * keep[..., None], block.in_proj_weight)
    parts = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in packed.chunk(3, dim=-1))
    query, key, value = parts
    logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    both = keep[:, None, :, None] & keep[:, None, None, :]
    weights = logits.masked_fill(~both, -65504.0).softmax(dim=-1) * keep[:, None, :, None]
    tokens = tokens + block.out_proj((weights @ value).transpose(1, 2).flatten(2))
    return tokens + block.ffn(block.norm_ffn(tokens) * keep[..., None])


def written_rollout(maps: list[Tensor]) -> Outputs:
    product = maps[0]
    for attention in maps[1:]:
        product = attention @ product
    return (product[:, :, 0, 1:].clone(),)
