"""Token permutation and reconstruction (TOP-ReID), against the formulas as written: every patch is projected."""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.floor import products_alone
from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import CrossModalReconstruction, TokenPermutation

BATCH, MODALITIES, PATCHES, DIM, HEADS = 8, 3, 128, 512, 8


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare a training step of each part, and the filling of a batch in which a quarter lacks a modality."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(BATCH, MODALITIES, PATCHES + 1, DIM, generator=generator).to(device)
    upstream = torch.randn(BATCH, MODALITIES, DIM, generator=generator).to(device)
    permutation = TokenPermutation(DIM, MODALITIES, num_heads=HEADS, device=device)
    reconstruction = CrossModalReconstruction(DIM, MODALITIES, num_heads=HEADS, device=device)
    parts = tokens[:, :, 0].contiguous(), tokens[:, :, 1:].contiguous()
    present = torch.ones(BATCH, MODALITIES, dtype=torch.bool, device=device)
    present[: BATCH // 4, 0] = False

    def step(compute: Callable[..., Tensor], layer: nn.Module, *inputs: Tensor, exact: bool = False) -> Outputs:
        layer = copy.deepcopy(layer).double() if exact else layer
        leaves = [(given.double() if exact else given).detach().requires_grad_() for given in inputs]
        result = compute(layer, *leaves)
        of_result = upstream.to(result.dtype) if result.ndim else torch.ones_like(result)
        return result.detach(), *torch.autograd.grad(result, [*leaves, *layer.parameters()], of_result)

    def permuted() -> Outputs:
        return step(lambda layer, *given: layer(*given), permutation, *parts)

    def reconstructed() -> Outputs:
        return step(lambda layer, given: layer.loss(given), reconstruction, tokens)

    def fill(compute: Callable[[Any, Tensor, Tensor], Tensor], exact: bool = False) -> Outputs:
        layer = copy.deepcopy(reconstruction).double() if exact else reconstruction
        with torch.no_grad():
            return (compute(layer, tokens.double() if exact else tokens, present),)

    yield Comparison(
        name="token permutation, 3 x 128, forward and backward",
        contenders={
            "as written": Contender(lambda: step(written_permutation, permutation, *parts)),
            "ours": Contender(permuted, lambda: step(written_permutation, permutation, *parts, exact=True)),
            "products alone": products_alone(permuted),
        },
        targets=(Target("time", 0.12), Target("memory", 1.0)),
        threads=1,
    )
    yield Comparison(
        name="reconstruction loss, 3 x 129, forward and backward",
        contenders={
            "as written": Contender(lambda: step(written_loss, reconstruction, tokens)),
            "ours": Contender(reconstructed, lambda: step(written_loss, reconstruction, tokens, exact=True)),
            "products alone": products_alone(reconstructed),
        },
        targets=(Target("time", 0.85), Target("memory", 1.0)),
        threads=1,
    )
    yield Comparison(
        name="filling a modality that a quarter of the samples lack, 3 x 129, forward",
        contenders={
            "as written": Contender(lambda: fill(written_fill)),
            "ours": Contender(
                lambda: fill(lambda layer, given, there: layer(given, there)),
                lambda: fill(written_fill, exact=True),
            ),
        },
        targets=(Target("memory", 1.0),),
        threads=1,
    )


def written_permutation(layer: TokenPermutation, class_tokens: Tensor, maps: Tensor) -> Tensor:
    """Make M x M calls, each of which normalises and projects the patches that it reads."""
    classes, patches = class_tokens.unbind(1), maps.unbind(1)
    for shift, stage in zip((1, 2, 0), layer.stages, strict=True):
        classes = [rotate(stage, classes[m], patches[(m + shift) % MODALITIES]) for m in range(MODALITIES)]
    return torch.stack(classes, dim=1)


def rotate(stage: Any, token: Tensor, patches: Tensor) -> Tensor:
    query = stage.query(stage.norm_globals(token))[:, None]
    key = stage.key(F.layer_norm(patches, patches.shape[-1:], stage.key_scale))
    query, key, value = (split(part) for part in (query, key, stage.value(patches)))
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
    token = token + stage.out_proj((weights @ value).transpose(1, 2).flatten(1))
    return token + stage.ffn(stage.norm_ffn(token))


def written_block(block: Any, tokens: Tensor) -> Tensor:
    packed = F.linear(block.norm_attention(tokens), block.in_proj_weight)
    query, key, value = (split(part) for part in packed.chunk(3, dim=-1))
    weights = (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(dim=-1)
    tokens = tokens + block.out_proj((weights @ value).transpose(1, 2).flatten(2))
    return tokens + block.ffn(block.norm_ffn(tokens))


def written_loss(layer: CrossModalReconstruction, tokens: Tensor) -> Tensor:
    given = tokens.unbind(1)
    terms = [(written_block(chain[0], given[m]) - given[k]).square().mean() for m, k, chain in pairs(layer)]
    return torch.stack(terms).sum()


def written_fill(layer: CrossModalReconstruction, tokens: Tensor, present: Tensor) -> Tensor:
    """Compute every pair for every sample; an absent modality gets the mean over present modalities."""
    given = list(tokens.unbind(1))
    made = [torch.zeros_like(part) for part in given]
    for m, k, chain in pairs(layer):
        made[k] = made[k] + torch.where(present[:, m, None, None], written_block(chain[0], given[m]), 0.0)
    count = present.sum(dim=1)[:, None, None]
    filled = [torch.where(present[:, k, None, None], given[k], made[k] / count) for k in range(MODALITIES)]
    return torch.stack(filled, dim=1)


def pairs(layer: CrossModalReconstruction) -> list[tuple[int, int, Any]]:
    everyone = range(MODALITIES)
    return [(m, k, layer.chains[f"{m}_to_{k}"]) for m in everyone for k in everyone if m != k]


def split(packed: Tensor) -> Tensor:
    return packed.unflatten(-1, (HEADS, -1)).transpose(1, 2)
