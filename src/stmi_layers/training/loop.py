"""The training loop, for any model that keeps the contract, on one process or many."""

import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from stmi_layers import ReIDMetrics
from stmi_layers.training.checkpoint import Checkpoint, check_room, read_checkpoint, save_checkpoint
from stmi_layers.training.collation import collate
from stmi_layers.training.dataset import MultiModalDataset
from stmi_layers.training.device import half_precision
from stmi_layers.training.distributed import (
    Share,
    by_first,
    join,
    lock,
    num_processes,
    rank,
    restarted,
    share_buffers,
)
from stmi_layers.training.epoch import train_epoch, warn_of_batches
from stmi_layers.training.evaluation import Collate, describe_encoded, encode_captions, score
from stmi_layers.training.files import write_text
from stmi_layers.training.norms import synchronised_norms
from stmi_layers.training.protocol import Protocol
from stmi_layers.training.report import write_metrics
from stmi_layers.training.run import Entry, Run, start_run
from stmi_layers.training.sampler import IdentitySampler
from stmi_layers.training.schedule import Machine, Schedule
from stmi_layers.training.step import WholeBatchLoss


def fit(
    model: nn.Module,
    train: MultiModalDataset,
    test: MultiModalDataset | None = None,
    *,
    schedule: Schedule,
    machine: Machine,
    out: Path,
    protocol: Protocol | None = None,
    keep: Mapping[str, Any] | None = None,
    resume: bool = False,
    log: Callable[[Entry], object] | None = None,
    collate: Collate = collate,
) -> dict[str, ReIDMetrics]:
    """Train `model`, write a checkpoint after every epoch, and score it on the test split.

    Under torchrun the processes share every batch, and a step equals that of one process with the whole batch. When
    torchrun restarts the processes after a failure, they continue from the last checkpoint.

    `out` receives checkpoint.pt, settings.json and, where there is a test split, metrics.json. It is locked while the
    run uses it.

    Args:
        model: a `ReIDModel`, the contract of training; call `torch.manual_seed` before you build it. It is moved to the
            device and trained in place.
        train: the training split; its captions are encoded by `model`.
        test: the test split, or None to train without evaluation.
        schedule: settings of the optimisation.
        machine: settings of the computer, which change the result by rounding at most.
        out: folder of the run.
        protocol: what a query may match; needed with `test`.
        keep: records for the checkpoint besides `schedule`, by name: settings records, facts, or dicts.
        resume: continue from the checkpoint in `out`; without a checkpoint, warn and start at epoch 1.
        log: called in the first process with the entry of every epoch, before its checkpoint is written.
        collate: function that makes a `Batch` of samples, for a custom dataset.

    Returns:
        Metrics of the last epoch by descriptor; {} without `test`.

    Raises:
        FileExistsError: when `out` holds a run already and `resume` is False.
        BlockingIOError: when another run uses `out`.
        ValueError: when settings, data, model or checkpoint do not fit each other, or `out` cannot be written.
        FloatingPointError: when a loss or gradient is not finite.
    """
    if machine.threads:
        torch.set_num_threads(machine.threads)
    out, device, path = Path(out), join(machine.device), Path(out) / "checkpoint.pt"
    with ExitStack() as stack:
        lock(stack, out)
        checkpoint = by_first(lambda: _read(path, resume))
        run = start_run(model.to(device), len(train.identities), schedule, keep or {})
        run.objective.to(device)
        if test is not None:
            by_first(lambda: _check_protocol(test, protocol))
        by_first(lambda: check_room(out, run.model, run.objective))
        if checkpoint is not None:
            run.restore(checkpoint, path)
        by_first(lambda: write_text(out / "settings.json", json.dumps(run.records, indent=2) + "\n"))
        for dataset in (train, *([] if test is None else [test])):
            encode_captions(model, dataset)
        stack.enter_context(synchronised_norms(model))
        return _epochs(run, train, test, schedule, machine, device, out, protocol, log, collate)


def _epochs(
    run: Run,
    train: MultiModalDataset,
    test: MultiModalDataset | None,
    schedule: Schedule,
    machine: Machine,
    device: torch.device,
    out: Path,
    protocol: Protocol | None,
    log: Callable[[Entry], object] | None,
    collate: Collate,
) -> dict[str, ReIDMetrics]:
    """Run the remaining epochs, each ending in a checkpoint, and report on the last one."""
    sampler = IdentitySampler(
        train.labels, schedule.identities_per_batch, schedule.images_per_identity, seed=schedule.seed
    )
    warn_of_batches(train, schedule)
    loader = DataLoader(
        train,
        batch_sampler=Share(sampler, rank(), num_processes()),
        num_workers=machine.workers,
        persistent_workers=machine.workers > 0,
        pin_memory=device.type == "cuda",
        collate_fn=collate,
        generator=torch.Generator(),
    )
    step: nn.Module = WholeBatchLoss(run.model, run.objective, autocast=half_precision(device, machine.amp))
    if num_processes() > 1:
        # A branch that one process skips, such as that of a missing modality, leaves parameters unused.
        step = DistributedDataParallel(step, find_unused_parameters=True)
    metrics: dict[str, ReIDMetrics] = {}
    while run.epoch < schedule.epochs:
        began = time.process_time()
        sampler.set_epoch(run.epoch)
        train.set_epoch(run.epoch)
        entry = train_epoch(run, step, loader, schedule, device, out, quiet=machine.quiet or rank() > 0)
        run.epoch += 1
        entry = {"epoch": run.epoch, **entry, "cpu_seconds": time.process_time() - began}
        share_buffers(run.model)
        entry["watch"] = run.model.watch()  # pyright: ignore[reportCallIssue]
        last = run.epoch == schedule.epochs
        if test is not None and protocol is not None and (last or run.epoch % machine.evaluate_every == 0):
            metrics = _evaluate(run, test, protocol, machine, device, collate)
            entry["mAP"] = {name: value.mAP for name, value in metrics.items()}
        run.history.append(entry)
        by_first(lambda: _write(out / "checkpoint.pt", run, entry, log))  # noqa: B023  called at once
    if test is None or protocol is None:
        return {}
    metrics = metrics or _evaluate(run, test, protocol, machine, device, collate)
    by_first(lambda: _report(run, test, metrics, protocol, out))
    return metrics


def best_epoch(history: Sequence[Entry]) -> Entry | None:
    """Return the epoch of best mAP; it is chosen on the scored split, so that it is never the result of the run."""
    scored = [entry for entry in history if "mAP" in entry]
    if not scored:
        return None
    best = max(scored, key=lambda entry: max(entry["mAP"].values()))
    return {"epoch": best["epoch"], "mAP": best["mAP"]}


def _read(path: Path, resume: bool) -> Checkpoint | None:
    """Read the checkpoint to continue from, if there is one."""
    if path.exists() and not (resume or restarted()):
        raise FileExistsError(f"{path.parent} holds a run already: continue it with resume=True, or choose another out")
    if resume and not path.exists() and not restarted():
        # A warning, so that one command can start a run and continue it; it names the line that called `train`.
        warnings.warn(f"{path} does not exist: nothing to resume, the run starts at epoch 1", stacklevel=5)
    return read_checkpoint(path) if path.exists() else None


def _check_protocol(test: MultiModalDataset, protocol: Protocol | None) -> None:
    """Refuse, before training, a test split that cannot be scored."""
    if protocol is None:
        raise ValueError("protocol must be given with a test split; received None. Pass protocol_for(test.items)")
    score({"nothing": torch.zeros(len(test), 1)}, test.items, protocol)


def _evaluate(
    run: Run,
    test: MultiModalDataset,
    protocol: Protocol,
    machine: Machine,
    device: torch.device,
    collate: Collate,
) -> dict[str, ReIDMetrics]:
    """Score the model on the test split; the processes share the samples, and the first one scores."""
    descriptors = describe_encoded(
        run.model,
        test,
        device=device,
        workers=machine.workers,
        batch_size=64,
        amp=machine.amp,
        quiet=machine.quiet or rank() > 0,
        collate=collate,
    )
    return by_first(lambda: score(descriptors, test.items, protocol))


def _write(path: Path, run: Run, entry: Entry, log: Callable[[Entry], object] | None) -> None:
    if log is not None:
        log(entry)
    save_checkpoint(path, run.checkpoint())


def _report(
    run: Run, test: MultiModalDataset, metrics: Mapping[str, ReIDMetrics], protocol: Protocol, out: Path
) -> None:
    split = getattr(test, "split", "test")
    extra = {
        "epochs": run.epoch,
        "processes": num_processes(),
        "training_cpu_minutes": sum(entry["cpu_seconds"] for entry in run.history) / 60,
        f"best_epoch_by_{split}": best_epoch(run.history),
        "watch": run.model.watch(),  # pyright: ignore[reportCallIssue]
    }
    headline: str = run.model.headline  # pyright: ignore[reportAssignmentType]
    write_metrics(out, metrics, headline=headline, protocol=protocol.describe(test.items), split=split, extra=extra)
