"""Train STMI on a folder set and evaluate it: `python -m examples.stmi.train --data DIR --out runs/NAME`.

A run that is killed continues with `--resume`; on the CPU, to the very weights of one that was never interrupted.
"""

import json
import math
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
import tyro
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from examples.stmi import figures
from examples.stmi.checkpoint import load_weights, read_checkpoint, save_checkpoint
from examples.stmi.data import IdentitySampler, MultiModalDataset, collate
from examples.stmi.evaluate import (
    choose_device,
    describe,
    features_of,
    headline,
    hypergraph_statistics,
    protocol_of,
    score,
    table,
    test_dataset,
    train_dataset,
    write_report,
)
from examples.stmi.folders import shorten
from examples.stmi.model import STMI, STMILoss
from examples.stmi.settings import Settings, build_model
from examples.stmi.text import Vocabulary
from stmi_layers import ReIDMetrics


@dataclass
class Run:
    """What changes during training, and all it takes to continue."""

    settings: Settings
    vocabulary: Vocabulary | None
    model: STMI
    loss: STMILoss
    optimizer: torch.optim.Optimizer
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        return {
            "settings": self.settings.to_dict(),
            "words": None if self.vocabulary is None else list(self.vocabulary.words),
            "model": self.model.state_dict(),
            "loss": self.loss.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "epoch": self.epoch,
            "history": self.history,
        }

    def restore(self, state: dict[str, Any]) -> None:
        words = None if self.vocabulary is None else list(self.vocabulary.words)
        if words != state["words"]:
            raise ValueError("the checkpoint was made with captions of other words; restore those, or train anew")
        load_weights(self.model, state["model"], "model")
        load_weights(self.loss, state["loss"], "loss")
        self.optimizer.load_state_dict(state["optimizer"])
        self.epoch, self.history = state["epoch"], state["history"]


def train(settings: Settings, *, resume: bool = False, quiet: bool = False) -> dict[str, ReIDMetrics]:
    """Train, checkpoint after every epoch, evaluate, and write the report into `settings.out`."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    checkpoint = settings.out / "checkpoint.pt"
    if checkpoint.exists() and not resume:
        raise FileExistsError(f"{settings.out} holds a run already: continue it with --resume, or choose another --out")
    state = read_checkpoint(checkpoint) if checkpoint.exists() else None
    if state is not None and (changed := settings.differences(Settings.from_dict(state["settings"]))):
        raise ValueError(
            f"{checkpoint} was made with other settings, --resume needs the same:\n  " + "\n  ".join(changed)
        )
    dataset, test = train_dataset(settings), test_dataset(settings)
    # A test split that cannot be scored is refused now, not after the training.
    score({"nothing": torch.zeros(len(test), 1)}, test.items, settings.query_cameras)
    run = start(settings, dataset)
    headline(settings, [*run.loss.terms, *(["all"] if len(run.loss.terms) > 1 else [])])
    if state is not None:
        run.restore(state)
    settings.out.mkdir(parents=True, exist_ok=True)
    (settings.out / "settings.json").write_text(json.dumps(settings.to_dict(), indent=2) + "\n")
    return fit(run, dataset, test, quiet=quiet)


def start(settings: Settings, dataset: MultiModalDataset) -> Run:
    """A run before its first epoch; equal settings and data give equal weights."""
    torch.manual_seed(settings.seed)
    vocabulary = None
    if settings.captions != "off":
        captions = [item.caption or "" for item in dataset.items]
        vocabulary = Vocabulary.from_captions(captions)
        if cut := vocabulary.count_cut(captions):
            warnings.warn(
                f"{cut} of {len(captions)} captions have more than {vocabulary.length} words and are cut", stacklevel=2
            )
    device = choose_device(settings.device)
    model = build_model(settings, vocabulary).to(device)
    widths = model.feature_widths(len(settings.modalities))
    loss = STMILoss(widths, len(dataset.identities), identity_weight=settings.identity_weight).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(settings, model, loss), weight_decay=settings.weight_decay)
    return Run(settings, vocabulary, model, loss, optimizer)


def parameter_groups(settings: Settings, model: STMI, loss: nn.Module) -> list[dict[str, Any]]:
    """Backbone, modulation strengths and new modules, each with its own learning rate."""
    named = [*model.named_parameters(), *loss.named_parameters(prefix="loss")]
    named = [(name, parameter) for name, parameter in named if parameter.requires_grad]
    strengths = [parameter for name, parameter in named if name.endswith(("alpha", "beta"))]
    backbone = [p for name, p in named if name.startswith("backbone.") and not name.endswith(("alpha", "beta"))]
    new = [parameter for name, parameter in named if not name.startswith("backbone.")]
    return [
        {"params": new, "initial_lr": settings.learning_rate},
        {"params": backbone, "initial_lr": settings.backbone_learning_rate},
        {"params": strengths, "initial_lr": settings.strength_learning_rate, "weight_decay": 0.0},
    ]


def rate(progress: float, warmup: float) -> float:
    """Share of the learning rate at a share of the training: up in a line, then along a cosine to a tenth."""
    if progress < warmup or warmup >= 1:
        return progress / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def fit(run: Run, dataset: MultiModalDataset, test: MultiModalDataset, *, quiet: bool) -> dict[str, ReIDMetrics]:
    """The remaining epochs, each ending in a checkpoint, and the report on the last one."""
    settings = run.settings
    sampler = IdentitySampler(
        dataset.labels, settings.identities_per_batch, settings.images_per_identity, seed=settings.seed
    )
    warn_of_repetition(dataset, settings.images_per_identity)
    loader = DataLoader(dataset, batch_sampler=sampler, num_workers=settings.workers, collate_fn=collate)
    device = choose_device(settings.device)
    metrics: dict[str, ReIDMetrics] = {}
    with SummaryWriter(str(settings.out / "tensorboard"), purge_step=run.epoch + 1) as writer:
        while run.epoch < settings.epochs:
            began = time.process_time()
            sampler.set_epoch(run.epoch)
            dataset.set_epoch(run.epoch)
            entry = train_epoch(run, dataset, loader, device, quiet=quiet)
            run.epoch += 1
            entry |= {"epoch": run.epoch, "cpu_seconds": time.process_time() - began, **strengths(run.model)}
            if run.epoch % settings.evaluate_every == 0 or run.epoch == settings.epochs:
                descriptors = describe(run.model, test, run.vocabulary, device=device, quiet=quiet)
                metrics = score(descriptors, test.items, settings.query_cameras)
                entry["mAP"] = {name: value.mAP for name, value in metrics.items()}
            run.history.append(entry)
            log(writer, entry)
            save_checkpoint(settings.out / "checkpoint.pt", run.state())
    if not metrics:
        descriptors = describe(run.model, test, run.vocabulary, device=device, quiet=quiet)
        metrics = score(descriptors, test.items, settings.query_cameras)
    extra = {
        "epochs": run.epoch,
        "training_cpu_minutes": sum(entry["cpu_seconds"] for entry in run.history) / 60,
        "best_epoch_by_test": best_epoch(run.history),
        "strengths": strengths(run.model),
        "hypergraph": hypergraph_statistics(run.model, test, run.vocabulary, device=device),
    }
    paths = write_report(settings, test, descriptors, metrics, extra=extra)
    paths.append(figures.curves(run.history, settings.out / "curves.png"))
    if not quiet:
        print(table(metrics), f"protocol: {protocol_of(settings)}", *paths, sep="\n")
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
            features = features_of(run.model, batch, run.vocabulary, device)
        loss = run.loss(features, batch.labels.to(device))
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
    """Continue the run in OUT, or start it if there is none."""


def main(arguments: Arguments) -> None:
    values = {name: value for name, value in vars(arguments).items() if name != "resume"}
    train(Settings(**values), resume=arguments.resume)


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
