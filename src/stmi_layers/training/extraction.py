"""Extraction of the descriptors of any number of items, a shard at a time."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from tqdm import tqdm

from stmi_layers._checks import check_choice, check_positive
from stmi_layers.training.collation import collate
from stmi_layers.training.contract import Batch
from stmi_layers.training.distributed import by_first, lock, num_processes, rank
from stmi_layers.training.evaluation import concatenate, features_of
from stmi_layers.training.messages import shorten
from stmi_layers.training.record import Item
from stmi_layers.training.shards import Extraction, fingerprint, shard_path, write_record, write_shard

Collate = Callable[[Sequence[Any]], Batch]


class _Loaded(NamedTuple):
    """Samples that were read, and the reasons why other samples could not be read."""

    indices: list[int]
    batch: Batch | None
    left_out: dict[int, str]


def extract(
    model: nn.Module,
    dataset: Dataset[Any],
    folder: Path,
    *,
    device: torch.device | str,
    items: Sequence[Item] | None = None,
    descriptors: Sequence[str] = (),
    shard_size: int = 4096,
    batch_size: int = 64,
    workers: int = 0,
    damaged: Literal["error", "skip"] = "error",
    amp: bool = True,
    quiet: bool = True,
    collate: Collate = collate,
    listing: str | None = None,
    notes: Mapping[str, Any] | None = None,
) -> Extraction:
    """Describe all items of a dataset, and write the descriptors into shards as they are made.

    A stopped extraction continues when it is started again: existing shards are not computed again. Memory holds one
    shard and the batches loaded ahead, whatever the number of items. Under torchrun every process writes every n-th
    shard without waiting for the others, so that processes may run on several machines with a shared folder. The first
    process locks the folder until its shards are done.

    Args:
        model: a `ReIDModel`; its mode (training or evaluation) is restored afterwards.
        dataset: dataset whose samples `collate` can stack. Identities and captions are not needed.
        folder: output folder, created if missing; read it by `open_shards`.
        device: device of the model.
        items: item of each sample; `dataset.items` by default.
        descriptors: names of the descriptors to keep: features of the model, several joined by +, or "all"; the
            model's headline by default.
        shard_size: items per shard. A stopped extraction loses at most one unfinished shard per process.
        batch_size: items per forward pass.
        workers: number of processes that load images; 0 loads in this process.
        damaged: policy for samples that cannot be read: stop, or leave them out and record them in the shard.
        amp: bfloat16 autocast on CUDA devices that support it.
        quiet: show no progress.
        collate: function that makes a `Batch` of samples.
        listing: digest of all items and their order; computed from their names by default.
        notes: plain values kept in the record.

    Raises:
        BlockingIOError: when another run uses the folder.
        ValueError: when features are not finite, naming their items, or the folder holds another extraction.
    """
    check_choice("damaged", damaged, ("error", "skip"))
    check_positive(shard_size=shard_size, batch_size=batch_size)
    items = dataset.items if items is None else items  # pyright: ignore[reportAttributeAccessIssue]
    names: list[str] = list(descriptors) or [model.headline]  # pyright: ignore[reportAssignmentType]
    record = Extraction(
        fingerprint=fingerprint(model),
        widths=widths_of(model, names),
        items=len(items),
        shard_size=shard_size,
        listing=listing or digest_of(items),
        notes=dict(notes or {}),
    )
    was_training = model.training
    with ExitStack() as stack:
        lock(stack, folder)
        by_first(partial(write_record, folder, record))
        plan = _Plan(folder, record, batch_size)
        loader = DataLoader(
            _Readable(dataset, skip=damaged == "skip"),
            batch_sampler=plan,
            num_workers=workers,
            collate_fn=partial(_collate, collate),
            pin_memory=torch.device(device).type == "cuda",
            generator=torch.Generator(),
        )
        stack.callback(model.train, was_training)
        model.eval()
        _fill(model, loader, plan, items, names, torch.device(device), amp=amp, quiet=quiet)
    return record


def widths_of(model: Any, names: Sequence[str]) -> dict[str, int]:
    """Widths of descriptors by name: features, several joined by +, or "all".

    Raises:
        ValueError: when a name is not among the model's features.
    """
    widths: dict[str, int] = model.widths
    parts = {name: list(widths) if name == "all" else name.split("+") for name in names}
    for name, features in parts.items():
        if not set(features) <= widths.keys():
            raise ValueError(
                f"descriptors must be features of the model, {list(widths)}, or several joined by +; received {name!r}"
            )
    return {name: sum(widths[feature] for feature in features) for name, features in parts.items()}


def digest_of(items: Sequence[Item]) -> str:
    """Return a digest of the names of items, in their order."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(f"{item.name}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:16]


class _Plan(Sampler[list[int]]):
    """Batches of the shards that this process has to make; no batch reaches over the end of a shard."""

    def __init__(self, folder: Path, record: Extraction, batch_size: int) -> None:
        self.folder, self.record, self.batch_size = folder, record, batch_size
        own = range(rank(), record.num_shards, num_processes())
        self.todo = [number for number in own if not shard_path(folder, number).exists()]

    def rows(self, number: int) -> range:
        """Return the indices of the items of a shard."""
        start = number * self.record.shard_size
        return range(start, min(start + self.record.shard_size, self.record.items))

    def __iter__(self) -> Iterator[list[int]]:
        for number in self.todo:
            rows = self.rows(number)
            for start in range(0, len(rows), self.batch_size):
                yield list(rows[start : start + self.batch_size])

    def __len__(self) -> int:
        return sum(-(-len(self.rows(number)) // self.batch_size) for number in self.todo)


class _Readable(Dataset[Any]):
    """Samples with their index; in place of an unreadable sample, the reason."""

    def __init__(self, dataset: Dataset[Any], *, skip: bool) -> None:
        self.dataset, self.skip = dataset, skip

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, self.dataset[index]
        except (OSError, ValueError) as error:
            if not self.skip:
                raise
            return index, str(error)


def _collate(collate: Collate, samples: Sequence[tuple[int, Any]]) -> _Loaded:
    left_out = {index: sample for index, sample in samples if isinstance(sample, str)}
    there = [(index, sample) for index, sample in samples if index not in left_out]
    return _Loaded([index for index, _ in there], collate([one for _, one in there]) if there else None, left_out)


@torch.no_grad()
def _fill(
    model: nn.Module,
    loader: DataLoader[Any],
    plan: _Plan,
    items: Sequence[Item],
    names: Sequence[str],
    device: torch.device,
    *,
    amp: bool,
    quiet: bool,
) -> None:
    """Describe the batches of the plan, and write every shard when its last batch is done."""
    batches = iter(loader)
    total = sum(len(plan.rows(number)) for number in plan.todo)
    with tqdm(total=total, desc="extract", unit="item", disable=quiet, smoothing=0.05) as progress:
        for number in plan.todo:
            rows, kept, left_out = plan.rows(number), [], {}
            parts: dict[str, list[Tensor]] = {name: [] for name in names}
            for _ in range(0, len(rows), plan.batch_size):
                loaded: _Loaded = next(batches)
                left_out |= {items[index].name: reason for index, reason in loaded.left_out.items()}
                there = [items[index] for index in loaded.indices]
                if loaded.batch is not None:
                    for name, values in _describe(model, loaded.batch, there, names, device, amp).items():
                        parts[name].append(values)
                kept += there
                progress.update(len(there) + len(loaded.left_out))
            widths = plan.record.widths
            shard = {name: torch.cat([torch.zeros(0, widths[name]), *values]) for name, values in parts.items()}
            write_shard(shard_path(plan.folder, number), shard, kept, left_out)


def _describe(
    model: Any, batch: Batch, items: Sequence[Item], names: Sequence[str], device: torch.device, amp: bool
) -> dict[str, Tensor]:
    """Compute the descriptors of a batch whose captions are not encoded yet."""
    if batch.texts is None:
        texts = model.encode([item.captions for item in items])
        batch = batch._replace(texts=texts, has_text=torch.tensor([any(item.captions) for item in items]))
    features = features_of(model, batch, device, amp)
    for name, values in features.items():
        wrong = (~values.isfinite().all(dim=1)).nonzero().flatten().tolist()
        if wrong:
            raise ValueError(
                f"features {name!r} must be finite; {len(wrong)} of {len(values)} rows of a batch are not: "
                f"{shorten([items[index].name for index in wrong])}. Check these images and the weights"
            )
    parts = {name: list(features) if name == "all" else name.split("+") for name in names}
    return {name: features[name] if name in features else concatenate(features, parts[name]) for name in names}
