"""The batch-hard triplet loss, against pytorch-metric-learning and against distances of all pairs."""

import importlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.floor import products_alone
from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import batch_hard_triplet

DIM, MARGIN, PER_IDENTITY = 768, 0.3, 4


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare a usual batch size, and larger batches."""
    for batch, limit in ((64, 0.55), (512, 0.3), (1024, 0.3)):
        features = torch.randn(batch, DIM, generator=torch.Generator().manual_seed(0)).to(device)
        labels = torch.arange(batch, device=device) // PER_IDENTITY
        ways = {"pytorch-metric-learning": library(), "ours": ours, "as written": as_written}
        exact = _with_gradient(as_written, features.double(), labels)
        yield Comparison(
            name=f"batch-hard triplet loss, {batch} items, forward and backward",
            contenders={name: Contender(_with_gradient(loss, features, labels), exact) for name, loss in ways.items()}
            | {"products alone": products_alone(_with_gradient(ours, features, labels))},
            targets=(Target("time", limit),),
        )


def _with_gradient(loss: Callable[[Tensor, Tensor], Tensor], features: Tensor, labels: Tensor) -> Callable[[], Outputs]:
    leaf = features.detach().requires_grad_()

    def run() -> Outputs:
        value = loss(leaf, labels)
        return value.detach(), *torch.autograd.grad(value, leaf)

    return run


def ours(features: Tensor, labels: Tensor) -> Tensor:
    return batch_hard_triplet(features, labels, margin=MARGIN)


def as_written(features: Tensor, labels: Tensor) -> Tensor:
    """Compute distances of all pairs, then the extrema of every row."""
    distance = torch.cdist(features, features)
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    farthest = distance.masked_fill(~same | itself, -torch.inf).amax(dim=1)
    nearest = distance.masked_fill(same, torch.inf).amin(dim=1)
    return (farthest - nearest + MARGIN).relu().mean()


def library() -> Callable[[Tensor, Tensor], Tensor]:
    package = "pytorch_metric_learning"
    parts = (importlib.import_module(f"{package}.{part}") for part in ("distances", "miners", "losses", "reducers"))
    distances, miners, losses, reducers = parts
    distance = distances.LpDistance(normalize_embeddings=False)
    mine = miners.BatchHardMiner(distance=distance)
    loss = losses.TripletMarginLoss(margin=MARGIN, distance=distance, reducer=reducers.MeanReducer())
    return lambda features, labels: loss(features, labels, mine(features, labels))
