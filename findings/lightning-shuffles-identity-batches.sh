#!/usr/bin/env bash
# Package: lightning 2.6.6 (with torch 2.13.0, pytorch-metric-learning 2.9.0)
# Guess: a sampler that orders a set into batches of P identities with K images each keeps this order on two processes:
#   DistributedSamplerWrapper of lightning leaves randomness to the sampler, and its documentation says that its argument
#   `shuffle` has no effect.
# Seen: it has. In training lightning wraps every sampler with shuffle=True, and the wrapper shuffles the order that the sampler
#   gave. With one process each batch of 16 has 4 identities with 4 images, with two processes about 12 identities, most of
#   them once: few samples have a positive, and the triplet loss falls silent. `use_distributed_sampler=False` keeps the
#   batches; the sampler then has to draw differently in each process. lightning knows the issue (21447).
# For us: `fit` draws P identities for all processes, and each takes whole identities. The guide warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet lightning==2.6.6 torch==2.13.0 pytorch-metric-learning==2.9.0 numpy==2.4.6
cd "$folder"
cat >batches.py <<'END'
import json
import logging
import warnings
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from pytorch_metric_learning.samplers import MPerClassSampler
from torch.utils.data import DataLoader, TensorDataset

P, K = 4, 4
LABELS = torch.arange(32).repeat_interleave(8)


class Recorder(LightningModule):
    """A model of one number that writes the identities of its batches."""

    def __init__(self, name: str):
        super().__init__()
        self.layer, self.name, self.seen = torch.nn.Linear(1, 1), name, []

    def training_step(self, batch, _):
        images, labels = batch
        self.seen.append(labels.tolist())
        return self.layer(images).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

    def on_train_end(self):
        Path(f"{self.name}_{self.global_rank}.json").write_text(json.dumps(self.seen))


def train(name: str, **options) -> None:
    torch.manual_seed(0)
    sampler = MPerClassSampler(LABELS, K, batch_size=P * K, length_before_new_iter=len(LABELS))
    loader = DataLoader(TensorDataset(torch.ones(len(LABELS), 1), LABELS), batch_size=P * K, sampler=sampler)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(max_epochs=1, accelerator="cpu", **quiet, **options).fit(Recorder(name), loader)


def identities(name: str, rank: int) -> list[int]:
    """Return the number of identities in each batch that a process saw."""
    return [len(set(batch)) for batch in json.loads(Path(f"{name}_{rank}.json").read_text())]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    two = {"devices": 2, "strategy": "ddp_fork"}
    train("default", **two)
    train("sampler_left_alone", **two, use_distributed_sampler=False)
    train("one", devices=1)
    for name, ranks in (("one", 1), ("default", 2), ("sampler_left_alone", 2)):
        for rank in range(ranks):
            counts = identities(name, rank)
            print(f"{name}, process {rank}: identities in each batch of {P * K}:", counts)
            assert counts and (min(counts) > P + 2 if name == "default" else set(counts) == {P})
END
OMP_NUM_THREADS=1 venv/bin/python -W ignore batches.py
