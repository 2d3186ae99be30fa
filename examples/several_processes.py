"""Train STMI in several processes, one per GPU, or on CPUs to try it.

    torchrun --nproc-per-node 2 -m examples.several_processes --data DIR --out runs/NAME

A batch is shared out by identity, and the loss is that of the whole batch: the step is the one a single process would
make. The options are those of `python -m examples.stmi.train`; it evaluates at the end alone, and does not resume.
`python -m examples.stmi.evaluate` reads the checkpoint.
"""

import os
import sys
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Sampler, Subset

from examples import cli as command
from examples.stmi.evaluate import choose_device, describe, score, test_dataset, train_dataset
from examples.stmi.model import STMI, STMILoss
from examples.stmi.recipes import deviations, recipe_arguments
from examples.stmi.report import headline, table, write_report
from examples.stmi.run import Run, start
from examples.stmi.settings import Settings
from examples.stmi.train import rate, refuse_nan
from examples.towers.text import Tokenizer
from stmi_layers.training.checkpoint import save_checkpoint
from stmi_layers.training.dataset import Batch, IdentitySampler, MultiModalDataset, collate
from stmi_layers.training.protocol import protocol_for


# --8<-- [start:gather]
class Gather(torch.autograd.Function):
    """The rows of all processes in the order of their ranks; a row's gradient is the sum of what all make of it."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


# --8<-- [end:gather]
# --8<-- [start:loss]
class WholeBatchLoss(nn.Module):
    """The model on the share of this process, and the loss on the features of all: what DDP wraps.

    Args:
        model: what every process runs on its samples.
        loss: of the features of all samples, in at least float32.
        autocast: run the model in bfloat16 autocast.
    """

    def __init__(self, model: STMI, loss: STMILoss, *, autocast: bool = False) -> None:
        super().__init__()
        self.model, self.loss, self.autocast = model, loss, autocast

    def forward(
        self,
        images: Tensor,
        masks: Tensor | None,
        present: Tensor | None,
        caption_tokens: Tensor | None,
        labels: Tensor,
        has_caption: Tensor,
        cameras: Tensor | None = None,
    ) -> Tensor:
        of_model = (images, masks, present, caption_tokens, cameras if self.model.reads_cameras else None)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.autocast):
            features = self.model(*of_model)
        there = {name: feature for name, feature in features._asdict().items() if feature is not None}
        wide = {name: feature.to(torch.promote_types(feature.dtype, torch.float32)) for name, feature in there.items()}
        whole = features._replace(**{name: Gather.apply(feature) for name, feature in wide.items()})
        return self.loss(whole, Gather.apply(labels), Gather.apply(has_caption))


# --8<-- [end:loss]
# --8<-- [start:share]
class Share(Sampler[list[int]]):
    """The part of every P x K batch that belongs to one process: whole identities, P / `processes` of them.

    Args:
        batches: seeded alike in all processes, so that all draw the same batches.
        rank: of this process.
        processes: how many there are.

    Raises:
        ValueError: when P is not a multiple of `processes`.
    """

    def __init__(self, batches: IdentitySampler, rank: int, processes: int) -> None:
        if batches.identities_per_batch % processes:
            raise ValueError(
                f"identities_per_batch must be a multiple of the number of processes, {processes}; "
                f"received {batches.identities_per_batch} (--identities-per-batch)"
            )
        self.batches, self.rank, self.processes = batches, rank, processes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            size = len(batch) // self.processes
            yield batch[self.rank * size : (self.rank + 1) * size]


# --8<-- [end:share]
def join(device: str) -> None:
    """Enter the group that torchrun names; with a `device` of "auto" or "cuda" each process takes a GPU of its own."""
    if "LOCAL_RANK" not in os.environ:
        raise ValueError("start it with torchrun: torchrun --nproc-per-node 2 -m examples.several_processes ...")
    gpus = device != "cpu" and torch.cuda.is_available()
    if gpus:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if gpus else "gloo")


def train(settings: Settings) -> None:
    """Train, then evaluate; the first process prints and writes."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    dataset, test = train_dataset(settings), test_dataset(settings)
    protocol = protocol_for(test.items, settings.query_cameras, match=settings.match, drop=settings.drop)
    run = start(settings, dataset)  # from one seed: the same weights everywhere
    headline(settings, list(run.loss.terms))  # a descriptor that the model lacks is refused now
    device, first = choose_device(settings.device), dist.get_rank() == 0
    if first:
        for line in [*deviations(settings), *run.loaded.splitlines()]:
            print(line)
    if device.type == "cuda":  # torch has no such norm for CPUs
        nn.SyncBatchNorm.convert_sync_batchnorm(run.model)
    half = settings.amp and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    # Without masks the strengths take no part, and without captions the head of T.
    unused = settings.captions == "optional" or settings.masks in ("none", "blank")
    whole_batch = WholeBatchLoss(run.model, run.loss, autocast=half)
    step = DistributedDataParallel(whole_batch, find_unused_parameters=unused)
    whole = IdentitySampler(
        dataset.labels, settings.identities_per_batch, settings.images_per_identity, seed=settings.seed
    )
    share = Share(whole, dist.get_rank(), dist.get_world_size())
    loader = DataLoader(dataset, batch_sampler=share, num_workers=settings.workers, collate_fn=collate)
    while run.epoch < settings.epochs:
        whole.set_epoch(run.epoch)
        dataset.set_epoch(run.epoch)
        loss = train_epoch(step, run, dataset, loader, device)
        run.epoch += 1
        if first:
            print(f"epoch {run.epoch}/{settings.epochs}: loss {loss:.3f}")
    descriptors = describe_all(run, test, device)
    if first:
        metrics = score(descriptors, test.items, protocol)
        settings.out.mkdir(parents=True, exist_ok=True)
        save_checkpoint(settings.out / "checkpoint.pt", run.state())
        extra: dict[str, object] = {"epochs": run.epoch, "processes": dist.get_world_size()}
        paths = write_report(settings, test, descriptors, metrics, protocol=protocol, extra=extra)
        print(table(metrics), f"protocol: {protocol.describe(test.items)}", *paths, sep="\n")


def train_epoch(
    step: nn.Module, run: Run, dataset: MultiModalDataset, loader: DataLoader, device: torch.device
) -> float:
    """One pass over the training images; the mean loss, which is the same in all processes."""
    # Masks are perturbed by each process for itself.
    torch.manual_seed((run.settings.seed * 1_000_003 + run.epoch) * dist.get_world_size() + dist.get_rank())
    step.train()
    losses: list[Tensor] = []
    for index, batch in enumerate(loader):
        progress = (run.epoch + (index + 1) / len(loader)) / run.settings.epochs
        for group in run.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate(progress, run.settings.warmup_epochs / run.settings.epochs)
        loss = step(*inputs(batch, run.tokenizer, device))
        run.optimizer.zero_grad()
        loss.backward()
        parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, max_norm=1.0)
        refuse_nan("norm of the gradient", norm, run, index, [dataset.items[i].name for i in batch.indices])
        run.optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses).mean().item()


def inputs(batch: Batch, tokenizer: Tokenizer | None, device: torch.device) -> tuple[Tensor | None, ...]:
    """What `WholeBatchLoss` takes."""
    present = None if batch.present.all() else batch.present
    tokens = None if tokenizer is None else tokenizer.encode(batch.captions)
    parts = (batch.images, batch.masks, present, tokens, batch.labels, batch.has_caption, batch.cameras)
    return tuple(None if part is None else part.to(device) for part in parts)


# --8<-- [start:describe]
def describe_all(run: Run, test: MultiModalDataset, device: torch.device) -> dict[str, Tensor]:
    """Descriptors of all items, by name, in their order: each process describes every n-th item."""
    rank, processes = dist.get_rank(), dist.get_world_size()
    for buffer in run.model.buffers():  # norms that are not synchronised have seen other samples in every process
        dist.broadcast(buffer, src=0)
    mine = Subset(test, range(rank, len(test), processes))
    parts: list[dict[str, Tensor]] = [{} for _ in range(processes)]
    own = describe(run.model, mine, run.tokenizer, device=device, descriptor=run.settings.descriptor, quiet=True)
    dist.all_gather_object(parts, own)
    whole = {name: part.new_empty(len(test), part.shape[1]) for name, part in parts[0].items()}
    for index, part in enumerate(parts):
        for name, rows in part.items():
            whole[name][index::processes] = rows
    return whole


# --8<-- [end:describe]
def main(settings: Settings) -> None:
    if (settings.out / "checkpoint.pt").exists():
        raise FileExistsError(f"{settings.out} holds a run already: choose another --out")
    join(settings.device)
    try:
        train(settings)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    command.run(main, Settings, __doc__, default=recipe_arguments(Settings, sys.argv[1:]))
