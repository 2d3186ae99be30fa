"""Descriptors of a dataset, and their retrieval metrics."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from stmi_layers import ReIDMetrics
from stmi_layers.training.collation import collate
from stmi_layers.training.contract import Batch
from stmi_layers.training.device import half_precision
from stmi_layers.training.distributed import interleave, join, share
from stmi_layers.training.messages import shorten
from stmi_layers.training.protocol import Protocol
from stmi_layers.training.record import Item
from stmi_layers.training.schedule import Machine

Collate = Callable[[Sequence[Any]], Batch]


def encode_captions(model: nn.Module, dataset: Dataset[Any]) -> None:
    """Let `model` encode the captions of `dataset` once, in evaluation mode and without gradient.

    A dataset without a method `encode_captions` brings its own texts, or has none.
    """
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    if not hasattr(dataset, "encode_captions"):
        return
    was_training = model.training
    model.eval()
    with torch.no_grad():
        dataset.encode_captions(model.encode)  # pyright: ignore[reportAttributeAccessIssue]
    model.train(was_training)


def describe(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    device: torch.device | str,
    workers: int = 0,
    batch_size: int = 64,
    amp: bool = True,
    quiet: bool = True,
    collate: Collate = collate,
) -> dict[str, Tensor]:
    """Compute descriptors by name: each feature with norm 1, all features joined ("all"), and the model's headline.

    Under torchrun every process describes a part of the samples and receives all descriptors. Images are read once
    and not kept. Identities are not used, so that a custom dataset may have none.

    Args:
        model: a `ReIDModel`; its mode (training or evaluation) is restored afterwards.
        dataset: dataset whose samples `collate` can stack.
        device: device of the model.
        workers: number of processes that load images; 0 loads in this process.
        batch_size: samples per forward pass.
        amp: bfloat16 autocast on CUDA devices that support it.
        quiet: show no progress.
        collate: function that makes a `Batch` of samples.

    Raises:
        ValueError: when features are not finite; the message names them and their samples.
    """
    encode_captions(model, dataset)
    return describe_encoded(
        model,
        dataset,
        device=torch.device(device),
        workers=workers,
        batch_size=batch_size,
        amp=amp,
        quiet=quiet,
        collate=collate,
    )


@torch.no_grad()
def describe_encoded(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    device: torch.device,
    workers: int,
    batch_size: int,
    amp: bool,
    quiet: bool,
    collate: Collate,
) -> dict[str, Tensor]:
    """Do the work of `describe` for a dataset whose captions are encoded."""
    count: int = len(dataset)  # pyright: ignore[reportArgumentType]
    loader = DataLoader(
        Subset(dataset, share(count)),
        batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
        generator=torch.Generator(),
    )
    was_training = model.training
    model.eval()
    parts: dict[str, list[Tensor]] = {}
    for batch in tqdm(loader, desc="describe", disable=quiet, leave=False):
        for name, feature in features_of(model, batch, device, amp).items():
            parts.setdefault(name, []).append(feature)
    model.train(was_training)
    own = {
        name: torch.cat(parts[name]) if name in parts else torch.zeros(0, width)
        for name, width in model.widths.items()  # pyright: ignore[reportCallIssue, reportAttributeAccessIssue]
    }
    descriptors = {name: interleave(rows, count, device) for name, rows in own.items()}
    refuse_nan(descriptors, dataset)
    if len(descriptors) > 1:
        descriptors["all"] = concatenate(descriptors, list(descriptors))
    headline: str = model.headline  # pyright: ignore[reportAssignmentType]
    if headline not in descriptors:
        descriptors[headline] = concatenate(descriptors, headline.split("+"))
    return descriptors


def features_of(model: nn.Module, batch: Batch, device: torch.device, amp: bool) -> dict[str, Tensor]:
    """Compute the features of a batch by name, each with norm 1, in float32 on the CPU."""
    with torch.autocast(device.type, torch.bfloat16, enabled=half_precision(device, amp)):
        features = model(batch.to(device, non_blocking=True)).features
    return {name: F.normalize(feature.float(), dim=-1).cpu() for name, feature in features.items()}


def concatenate(descriptors: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """Join several descriptors into one with norm 1.

    Raises:
        ValueError: when a name is not among the descriptors.
    """
    if unknown := [name for name in names if name not in descriptors]:
        raise ValueError(f"names must be among the descriptors, {list(descriptors)}; received {unknown}")
    return F.normalize(torch.cat([descriptors[name] for name in names], dim=-1), dim=-1)


def refuse_nan(descriptors: Mapping[str, Tensor], dataset: Dataset[Any]) -> None:
    """Refuse descriptors that are not finite, because such rows would silently rank anywhere."""
    for name, rows in descriptors.items():
        wrong = (~rows.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            named = [_name(dataset, index) for index in wrong]
            raise ValueError(
                f"features {name!r} must be finite; {len(wrong)} of {len(rows)} rows are not: {shorten(named)}. "
                "Check these samples, or go back to an earlier checkpoint"
            )


def _name(dataset: Dataset[Any], index: int) -> str:
    while isinstance(dataset, Subset):
        dataset, index = dataset.dataset, dataset.indices[index]
    items = getattr(dataset, "items", None)
    return f"sample {index}" if items is None else items[index].name


def score(
    descriptors: Mapping[str, Tensor], items: Sequence[Item], protocol: Protocol, *, rerank: bool = False
) -> dict[str, ReIDMetrics]:
    """Compute the metrics of every descriptor.

    Args:
        descriptors: one row per item, by any names.
        items: items of the test split.
        protocol: what a query may match.
        rerank: rank by k-reciprocal neighbours, instead of by distance alone.
    """
    return {name: protocol.score(descriptor, items, rerank=rerank) for name, descriptor in descriptors.items()}


def evaluate(
    model: nn.Module, dataset: Any, *, protocol: Protocol, machine: Machine | None = None, rerank: bool = False
) -> dict[str, ReIDMetrics]:
    """Describe the items of a test split by `model`, and score every descriptor.

    Args:
        model: a `ReIDModel`; it is moved to the device of `machine`.
        dataset: the test split.
        protocol: what a query may match.
        machine: settings of the computer; by default a CUDA device if there is one.
        rerank: rank by k-reciprocal neighbours, instead of by distance alone (default).
    """
    machine = machine or Machine()
    device = join(machine.device)
    options: dict[str, Any] = {"workers": machine.workers, "amp": machine.amp, "quiet": machine.quiet}
    descriptors = describe(model.to(device), dataset, device=device, **options)
    return score(descriptors, dataset.items, protocol, rerank=rerank)
