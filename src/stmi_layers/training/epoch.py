"""One epoch of training, and warnings about batches without triplets or with repeated images."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from stmi_layers.training.dataset import MultiModalDataset
from stmi_layers.training.distributed import mean_over_processes, num_processes, rank
from stmi_layers.training.dropout import drop_modalities, modality_draws
from stmi_layers.training.messages import shorten
from stmi_layers.training.optimisation import Ledger, gradient_norm, rate, set_rate
from stmi_layers.training.run import Entry, Run
from stmi_layers.training.schedule import Schedule

# Steps between readings of the loss on a device that computes asynchronously.
READ_EVERY = 50


def train_epoch(
    run: Run,
    step: nn.Module,
    loader: DataLoader[Any],
    schedule: Schedule,
    device: torch.device,
    out: Path,
    *,
    quiet: bool,
) -> Entry:
    """Train on all training images once, and return the entry of the history."""
    # One seed per epoch: a resumed run draws what an uninterrupted one would have drawn; processes draw differently.
    torch.manual_seed((schedule.seed * 1_000_003 + run.epoch) * num_processes() + rank())
    kept = f"the checkpoint of epoch {run.epoch} is kept in {out}" if run.epoch else "nothing is kept"
    parameters = [parameter for group in run.optimizer.param_groups for parameter in group["params"]]
    items, draws, scale = loader.dataset.items, None, 0.0  # pyright: ignore[reportAttributeAccessIssue]
    ledger = Ledger(1 if device.type == "cpu" else READ_EVERY, items, kept, run.epoch + 1)
    step.train()
    progress = tqdm(loader, desc=f"epoch {run.epoch + 1}/{schedule.epochs}", disable=quiet)
    for index, batch in enumerate(progress):
        if schedule.modality_dropout:
            if draws is None:
                draws = modality_draws(len(items), batch.images.shape[1], seed=schedule.seed, epoch=run.epoch)
            batch = drop_modalities(batch, draws, schedule.modality_dropout)
        done = (run.epoch + (index + 1) / len(loader)) / schedule.epochs
        scale = rate(done, schedule.warmup_epochs / schedule.epochs)
        set_rate(run.optimizer, scale)
        parts = step(batch.to(device, non_blocking=True))
        loss = torch.stack(list(parts.values())).sum()
        run.optimizer.zero_grad()
        loss.backward()
        norm = gradient_norm(parameters, schedule.clip_norm)
        ledger.add(loss, parts, norm, batch.indices)
        run.optimizer.step()
        if ledger.losses:
            shown = {"loss": f"{ledger.losses[-1]:.3f}", "lr": f"{schedule.learning_rate * scale:.1e}"}
            progress.set_postfix(shown, refresh=False)
    ledger.read()
    means = mean_over_processes({"loss": sum(ledger.losses) / len(ledger.losses), **ledger.means()})
    return {"loss": means.pop("loss"), "losses": means, "learning_rate": schedule.learning_rate * scale}


def warn_of_batches(dataset: MultiModalDataset, schedule: Schedule) -> None:
    """Warn about batches without triplets, and about identities with fewer images than a batch takes of each."""
    images_per_identity = schedule.images_per_identity
    if images_per_identity == 1 or schedule.identities_per_batch == 1:
        warnings.warn(
            f"a batch has no triplets, so the triplet loss is 0: identities_per_batch={schedule.identities_per_batch}, "
            f"images_per_identity={images_per_identity}. Take at least 2 of both",
            stacklevel=2,
        )
    counts = Counter(item.identity for item in dataset.items)
    few = [str(identity) for identity, count in counts.items() if count < images_per_identity]
    if few:
        warnings.warn(
            f"{len(few)} of {len(counts)} identities have fewer images than images_per_identity={images_per_identity}: "
            f"{shorten(few)}; their images are repeated within a batch. Lower images_per_identity to avoid this",
            stacklevel=2,
        )
