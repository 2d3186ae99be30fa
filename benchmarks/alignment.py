"""Gram-volume alignment (GAM of Signal), against the square root of a determinant."""

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import gram_alignment_loss

DIM, MODALITIES, TEMPERATURE = 512, 3, 0.07


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare the loss with one anchor and with all anchors in turn, at two batch sizes."""
    for batch in (64, 128):
        features = inputs(batch).to(device)
        for name, anchors in (("one anchor", (0,)), ("all anchors", tuple(range(MODALITIES)))):
            ways = {"as written": as_written, "ours": ours}
            exact = _with_gradient(as_written, features.double(), anchors)
            yield Comparison(
                name=f"Gram alignment, {name}, {batch} items, forward and backward",
                contenders={
                    way: Contender(_with_gradient(loss, features, anchors), exact) for way, loss in ways.items()
                },
                targets=(Target("time", 1.3), Target("memory", 1.0), Target("error", 1.0)),
                threads=1,
            )


def inputs(batch: int) -> Tensor:
    """Draw features as in the middle of training: modalities with a cosine of about 0.99."""
    generator = torch.Generator().manual_seed(0)
    common, own = (torch.randn(batch, count, DIM, generator=generator) for count in (1, MODALITIES))
    return common + 0.1 * own


def _with_gradient(
    loss: Callable[[Tensor, Tensor, tuple[int, ...]], Tensor], features: Tensor, anchors: tuple[int, ...]
) -> Callable[[], Outputs]:
    leaf = features.detach().requires_grad_()
    temperature = torch.tensor(TEMPERATURE).to(leaf).requires_grad_()

    def run() -> Outputs:
        value = loss(leaf, temperature, anchors)
        return value.detach(), *torch.autograd.grad(value, [leaf, temperature])

    return run


def ours(features: Tensor, temperature: Tensor, anchors: tuple[int, ...]) -> Tensor:
    return gram_alignment_loss(features, temperature, anchor=anchors[0] if len(anchors) == 1 else None)


def as_written(features: Tensor, temperature: Tensor, anchors: tuple[int, ...]) -> Tensor:
    """Compute Gram matrices of all pairs, their determinants, and two cross-entropies."""
    features = F.normalize(features, dim=-1)
    target = torch.arange(features.shape[0], device=features.device)
    losses = []
    for anchor in anchors:
        first = features[:, anchor]
        others = [features[:, modality] for modality in range(MODALITIES) if modality != anchor]
        volume = _root_of_determinant(first, *others)
        both = (F.cross_entropy(-part / temperature, target, label_smoothing=0.1) for part in (volume, volume.T))
        losses.append(sum(both, start=volume.new_zeros(())) / 2)
    return torch.stack(losses).mean()


def _root_of_determinant(first: Tensor, second: Tensor, third: Tensor) -> Tensor:
    square = (len(first), len(first))
    rows = (first * first).sum(dim=1)[:, None].expand(square)
    two, three, between = ((one * other).sum(dim=1).expand(square) for one, other in _pairs(second, third))
    across = first @ second.T, first @ third.T
    gram = [[rows, *across], [across[0], two, between], [across[1], between, three]]
    return torch.stack([torch.stack(row, dim=-1) for row in gram], dim=-2).det().abs().sqrt()


def _pairs(second: Tensor, third: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    return (second, second), (third, third), (second, third)
