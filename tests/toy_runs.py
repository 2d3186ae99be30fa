"""Training runs of the toy method on a tiny folder set, for the tests of the loop."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stmi_layers import ReIDMetrics
from stmi_layers.training import Data, Machine, Schedule, facts_of, fit, load_split, protocol_for, read_checkpoint
from toy_method.model import Toy, build
from toy_method.settings import Settings

DATA = Data(Path(), modalities=("RGB", "NI"), image_size=(16, 16), masks="none", captions="optional")
SCHEDULE = Schedule(
    epochs=3,
    identities_per_batch=4,
    images_per_identity=2,
    rates={"strengths": 1e-2},
    no_decay=("strengths",),
    warmup_epochs=1.0,
    erasing=0.5,
    seed=3,
)
MACHINE = Machine(device="cpu", threads=1, quiet=True, evaluate_every=2)


def train_toy(
    root: Path,
    out: Path,
    *,
    settings: Settings | None = None,
    data: Data = DATA,
    schedule: Schedule = SCHEDULE,
    machine: Machine = MACHINE,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> tuple[dict[str, ReIDMetrics], Toy]:
    """Train the toy method as a command would, and return its metrics and the model."""
    data, settings = replace(data, root=root), settings or Settings()
    train = load_split(data, "train", augment=schedule.augmentation(), seed=schedule.seed, cache=not machine.workers)
    test = load_split(data, "test")
    facts = facts_of(train, data.modalities)
    torch.manual_seed(schedule.seed)
    model = build(settings, facts).to(dtype)
    metrics = fit(
        model,
        train,
        test,
        schedule=schedule,
        machine=machine,
        out=out,
        protocol=protocol_for(test.items, data),
        keep={"data": data, "method": settings, "facts": facts},
        **options,
    )
    return metrics, model


def weights(out: Path) -> dict[str, Tensor]:
    """Return the weights of model and objective in the checkpoint of a run."""
    checkpoint = read_checkpoint(out / "checkpoint.pt")
    return checkpoint.model | {f"objective.{name}": value for name, value in checkpoint.objective.items()}


def assert_same_weights(one: Path, other: Path, **tolerance: float) -> None:
    """Compare the checkpoints of two runs, bit for bit unless a tolerance is given."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, **(tolerance or {"rtol": 0.0, "atol": 0.0}), msg=name)
