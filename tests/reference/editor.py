"""EDITOR's selection, aggregation and losses as loops over single samples and tokens."""

import torch
from torch import Tensor

from reference import layer_norm
from reference.blocks import block, part


def rollout(maps: list[Tensor], prefix_tokens: int) -> Tensor:
    """Of one head: the first row of the whole product of the layers, (patches)."""
    product = maps[0]
    for attention in maps[1:]:
        product = attention @ product
    return product[0, prefix_tokens:]


def select(scores: Tensor, num: int, present: Tensor) -> Tensor:
    """Patches of one sample that are among the best of any head: (modalities heads patches) to (patches)."""
    keep = torch.zeros(scores.shape[-1], dtype=torch.bool)
    for m, modality in enumerate(scores.tolist()):
        for head in modality if present[m] else []:
            for j in sorted(range(len(head)), key=lambda j: (-head[j], j))[:num]:
                keep[j] = True
    return keep


def within(tokens: Tensor, keep: Tensor, state: dict[str, Tensor], heads: int) -> Tensor:
    rows = []
    for b, sample in enumerate(tokens):
        for m, modality in enumerate(sample):
            kept = keep[b, m].tolist()
            given = [token if there else torch.zeros_like(token) for token, there in zip(modality, kept, strict=True)]
            rows += block(given, kept, part(state, f"blocks.{m}."), heads)
    return torch.stack(rows).reshape(tokens.shape)


def aggregate(tokens: Tensor, keep: Tensor, state: dict[str, Tensor], heads: int) -> Tensor:
    rows = []
    for b, sample in enumerate(within(tokens, keep, state, heads)):
        kept = keep[b].flatten().tolist()
        mixed = block(list(sample.flatten(0, 1)), kept, part(state, "joint."), heads)
        normed = [layer_norm(token, state["norm.weight"], state["norm.bias"]) for token in mixed]
        rows += [token if there else torch.zeros_like(token) for token, there in zip(normed, kept, strict=True)]
    return torch.stack(rows).reshape(tokens.shape)


def background_consistency(patches: Tensor, keep: Tensor, present: Tensor) -> Tensor:
    total = torch.zeros((), dtype=patches.dtype)
    batch, modalities, count, dim = patches.shape
    for m in range(modalities):
        for k in range(m + 1, modalities):
            both = [b for b in range(batch) if present[b, m] and present[b, k]]
            for b in both:
                for j in range(count):
                    if not keep[b, j]:
                        distance = ((patches[b, m, j] - patches[b, k, j]) ** 2).sum()
                        total = total + distance / (len(both) * count * dim)
    return total


def centre_step(
    centres: Tensor, seen: Tensor, features: Tensor, labels: list[int], present: Tensor, rate: float
) -> tuple[Tensor, Tensor]:
    """The loss against the moved centres, and the moved centres."""
    centres = centres.clone()
    total = torch.zeros((), dtype=features.dtype)
    batch, modalities, dim = features.shape
    for m in range(modalities):
        units = {b: features[b, m] / (features[b, m] ** 2).sum().sqrt() for b in range(batch) if present[b, m]}
        for label in set(labels):
            own = [unit.detach() for b, unit in units.items() if labels[b] == label]
            if own:
                mean = sum(own) / len(own)
                share = rate if seen[m, label] else 1.0
                centres[m, label] = share * mean + (1 - share) * centres[m, label]
        for b, unit in units.items():
            total = total + ((centres[m, labels[b]] - unit) ** 2).sum() / (len(units) * dim)
    return total, centres
