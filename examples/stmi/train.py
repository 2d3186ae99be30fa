"""Train STMI on a folder set and evaluate it: `python -m examples.stmi.train --data DIR --out runs/NAME`.

A run that is killed continues with `--resume`; on the CPU, to the very weights of one that was never interrupted.
"""

import json
import math
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from examples import cli as command
from examples import figures
from examples.stmi.evaluate import (
    choose_device,
    describe,
    features_of,
    hypergraph_statistics,
    score,
    test_dataset,
    train_dataset,
)
from examples.stmi.recipes import deviations, recipe_arguments
from examples.stmi.report import headline, table, write_report
from examples.stmi.run import Run, check_weights, start
from examples.stmi.settings import Settings
from stmi_layers import ReIDMetrics
from stmi_layers.training.checkpoint import read_checkpoint, save_checkpoint
from stmi_layers.training.dataset import IdentitySampler, MultiModalDataset, collate
from stmi_layers.training.protocol import Protocol, protocol_for
from stmi_layers.training.splits import shorten


def train(settings: Settings, *, resume: bool = False, quiet: bool = False) -> dict[str, ReIDMetrics]:
    """Train, checkpoint after every epoch, evaluate, and write the report into `settings.out`."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    checkpoint = settings.out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise FileExistsError(f"{settings.out} holds a run already: continue it with --resume, or choose another --out")
    if resume and not checkpoint.exists():
        # No error, so that one command can start a run and go on with it.
        warnings.warn(f"{checkpoint} does not exist: nothing to resume, the run starts at epoch 1", stacklevel=2)
    state = read_checkpoint(checkpoint) if checkpoint.exists() else None
    if state is not None and (changed := settings.differences(Settings.from_dict(state["settings"]))):
        raise ValueError(
            f"{checkpoint} was made with other settings, --resume needs the same:\n  " + "\n  ".join(changed)
        )
    if state is None:
        check_weights(settings)
    dataset, test = train_dataset(settings), test_dataset(settings)
    # A test split that cannot be scored is refused now, not after the training.
    protocol = protocol_for(test.items, settings.query_cameras, match=settings.match, drop=settings.drop)
    score({"nothing": torch.zeros(len(test), 1)}, test.items, protocol)
    # A checkpoint holds all weights: the pretrained file may be gone when a run continues.
    run = start(settings, dataset, pretrained=state is None)
    headline(settings, list(run.loss.terms))  # likewise a descriptor that the model lacks
    if state is not None:
        run.restore(state)
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "settings.json").write_text(json.dumps(settings.to_dict(), indent=2) + "\n")
    if run.loaded:
        (settings.out / "weights.txt").write_text(run.loaded + "\n")
        if not quiet:
            print(run.loaded)
    return fit(run, dataset, test, protocol, quiet=quiet)


def rate(progress: float, warmup: float) -> float:
    """Share of the learning rate at a share of the training: up in a line, then along a cosine to a tenth."""
    if progress < warmup or warmup >= 1:
        return progress / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def fit(
    run: Run, dataset: MultiModalDataset, test: MultiModalDataset, protocol: Protocol, *, quiet: bool
) -> dict[str, ReIDMetrics]:
    """The remaining epochs, each ending in a checkpoint, and the report on the last one."""
    settings = run.settings
    sampler = IdentitySampler(
        dataset.labels, settings.identities_per_batch, settings.images_per_identity, seed=settings.seed
    )
    warn_of_repetition(dataset, settings.images_per_identity)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=settings.workers, collate_fn=collate)
    device = choose_device(settings.device)
    metrics: dict[str, ReIDMetrics] = {}
    options: dict[str, Any] = {"descriptor": settings.descriptor, "workers": settings.workers}
    with SummaryWriter(str(settings.out / "tensorboard"), purge_step=run.epoch + 1) as writer:
        while run.epoch < settings.epochs:
            began = time.process_time()
            sampler.set_epoch(run.epoch)
            dataset.set_epoch(run.epoch)
            entry = train_epoch(run, dataset, loader, device, quiet=quiet)
            run.epoch += 1
            entry |= {"epoch": run.epoch, "cpu_seconds": time.process_time() - began, **strengths(run.model)}
            if run.epoch % settings.evaluate_every == 0 or run.epoch == settings.epochs:
                descriptors = describe(run.model, test, run.tokenizer, device=device, quiet=quiet, **options)
                metrics = score(descriptors, test.items, protocol)
                entry["mAP"] = {name: value.mAP for name, value in metrics.items()}
            run.history.append(entry)
            log(writer, entry)
            save_checkpoint(settings.out / "checkpoint.pt", run.state())
    if not metrics:
        descriptors = describe(run.model, test, run.tokenizer, device=device, quiet=quiet, **options)
        metrics = score(descriptors, test.items, protocol)
    extra = {
        "epochs": run.epoch,
        "training_cpu_minutes": sum(entry["cpu_seconds"] for entry in run.history) / 60,
        "best_epoch_by_test": best_epoch(run.history),
        "strengths": strengths(run.model),
        "hypergraph": hypergraph_statistics(run.model, test, run.tokenizer, device=device),
    }
    paths = write_report(settings, test, descriptors, metrics, protocol=protocol, extra=extra)
    paths += figures.save(figures.curves(run.history), settings.out / "curves.png")
    if not quiet:
        print(table(metrics), f"protocol: {protocol.describe(test.items)}", *paths, sep="\n")
    return metrics


def warn_of_repetition(dataset: MultiModalDataset, images_per_identity: int) -> None:
    counts = Counter(item.identity for item in dataset.items)
    few = [str(identity) for identity, count in counts.items() if count < images_per_identity]
    if few:
        warnings.warn(
            f"{len(few)} of {len(counts)} identities have fewer images than images_per_identity={images_per_identity}: "
            f"{shorten(few)}; theirs are repeated within a batch. Lower --images-per-identity to avoid it",
            stacklevel=2,
        )


def train_epoch(
    run: Run, dataset: MultiModalDataset, loader: DataLoader, device: torch.device, *, quiet: bool
) -> dict[str, Any]:
    settings = run.settings
    # One seed per epoch makes a resumed run draw what an uninterrupted one would have drawn.
    torch.manual_seed(settings.seed * 1_000_003 + run.epoch)
    half = settings.amp and device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    run.model.train()
    losses: list[float] = []
    progress = tqdm(loader, desc=f"epoch {run.epoch + 1}/{settings.epochs}", disable=quiet)
    for step, batch in enumerate(progress):
        scale = rate((run.epoch + (step + 1) / len(loader)) / settings.epochs, settings.warmup_epochs / settings.epochs)
        for group in run.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * scale
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            features = features_of(run.model, batch, run.tokenizer, device)
        loss = run.loss(features, batch.labels.to(device), batch.has_caption.to(device))
        run.optimizer.zero_grad()
        loss.backward()
        parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
        norm = nn.utils.clip_grad_norm_(parameters, max_norm=1.0)
        names = [dataset.items[index].name for index in batch.indices]
        refuse_nan("loss", loss, run, step, names)
        refuse_nan("norm of the gradient", norm, run, step, names)
        run.optimizer.step()
        losses.append(loss.item())
        progress.set_postfix(loss=f"{losses[-1]:.3f}", lr=f"{settings.learning_rate * scale:.1e}")
    return {"loss": sum(losses) / len(losses), "learning_rate": settings.learning_rate * scale}


def refuse_nan(what: str, value: torch.Tensor, run: Run, step: int, names: list[str]) -> None:
    if not torch.isfinite(value):
        kept = f"the checkpoint of epoch {run.epoch} is kept in {run.settings.out}" if run.epoch else "nothing is kept"
        raise FloatingPointError(
            f"the {what} is {value.item()} in epoch {run.epoch + 1}, step {step + 1} (items {shorten(names)}); {kept}. "
            "Lower --learning-rate, --backbone-learning-rate or --strength-learning-rate, or look at these items"
        )


def strengths(model: nn.Module) -> dict[str, list[float]]:
    """Alpha and beta of every block, averaged over heads, for the log."""
    found: dict[str, list[float]] = {"alpha": [], "beta": []}
    for name, parameter in model.named_parameters():
        kind = name.rsplit(".", 1)[-1]
        if kind in found:
            found[kind].append(parameter.mean().item())
    return found


def log(writer: SummaryWriter, entry: dict[str, Any]) -> None:
    writer.add_scalar("loss", entry["loss"], entry["epoch"])
    writer.add_scalar("learning_rate", entry["learning_rate"], entry["epoch"])
    for name in ("alpha", "beta"):
        for block, value in enumerate(entry[name]):
            writer.add_scalar(f"{name}/block_{block}", value, entry["epoch"])
    for name, value in entry.get("mAP", {}).items():
        writer.add_scalar(f"mAP/{name}", value, entry["epoch"])


def best_epoch(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The best evaluated epoch, chosen on the test split: to be read beside the result, never as the result."""
    scored = [entry for entry in history if "mAP" in entry]
    best = max(scored, key=lambda entry: max(entry["mAP"].values()))
    return {"epoch": best["epoch"], "mAP": best["mAP"]}


@dataclass(frozen=True)
class Arguments(Settings):
    resume: bool = False
    """Continue the run in OUT; with a warning, start it if there is none."""


def main(arguments: Arguments) -> None:
    values = {name: value for name, value in vars(arguments).items() if name != "resume"}
    settings = Settings(**values)
    for line in deviations(settings):
        print(line)
    train(settings, resume=arguments.resume)


if __name__ == "__main__":
    command.run(main, Arguments, __doc__, default=recipe_arguments(Arguments, sys.argv[1:]))
