"""State of a training run, how it starts, and how it continues from a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from stmi_layers.training.checkpoint import Checkpoint, load_weights
from stmi_layers.training.contract import ReIDModel
from stmi_layers.training.objective import Objective
from stmi_layers.training.optimisation import build_optimizer
from stmi_layers.training.schedule import Schedule
from stmi_layers.training.settings import to_dict

Entry = dict[str, Any]


@dataclass
class Run:
    """State that changes during training, and the records it was made with.

    Attributes:
        model: a module that keeps the contract.
        objective: losses on its features.
        optimizer: over the parameters of both.
        records: settings and facts as plain values, by name.
        epoch: number of epochs done.
        history: one entry per epoch.
    """

    model: nn.Module
    objective: Objective
    optimizer: torch.optim.Optimizer
    records: dict[str, dict[str, Any]]
    epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)

    def checkpoint(self) -> Checkpoint:
        """Return the state to be saved."""
        return Checkpoint(
            records=self.records,
            model=self.model.state_dict(),
            objective=self.objective.state_dict(),
            optimizer=self.optimizer.state_dict(),
            epoch=self.epoch,
            history=self.history,
        )

    def restore(self, checkpoint: Checkpoint, path: Path) -> None:
        """Continue where `checkpoint`, read from `path`, was saved.

        Raises:
            ValueError: when the records differ, or weights or optimizer do not fit; the message names what differs.
        """
        if changed := record_differences(checkpoint.records, self.records):
            raise ValueError(
                f"{path} was made with other settings, and resume=True needs the same:\n  " + "\n  ".join(changed)
            )
        load_weights(self.model, checkpoint.model, "model", path)
        load_weights(self.objective, checkpoint.objective, "objective", path)
        try:
            self.optimizer.load_state_dict(checkpoint.optimizer)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path} must hold the state of this optimizer; received another: {error}") from error
        self.epoch, self.history = checkpoint.epoch, checkpoint.history


def start_run(model: nn.Module, num_identities: int, schedule: Schedule, keep: Mapping[str, Any]) -> Run:
    """Start a run before its first epoch; the heads of the objective are drawn from torch's default generator.

    Args:
        model: a module that keeps the contract.
        num_identities: number of identities in the training split.
        schedule: settings of the optimisation.
        keep: further records for the checkpoint, by name: settings records, facts, or dicts of plain values.
    """
    if not isinstance(model, ReIDModel):
        lacking = [
            name for name in ("widths", "headline", "encode", "parameter_groups", "watch") if not hasattr(model, name)
        ]
        raise TypeError(f"model must keep ReIDModel, the contract of training; {type(model).__name__} lacks {lacking}")
    joined = model.headline == "all" and len(model.widths) > 1
    if not joined and not set(model.headline.split("+")) <= model.widths.keys():
        raise ValueError(
            f"headline must be one of the features, {list(model.widths)}, several joined by +, or "
            f"'all' of several features; received {model.headline!r}"
        )
    refuse_sharded(model)
    objective = Objective(model.widths, num_identities, schedule)
    if any(parameter.dtype == torch.float64 for parameter in model.parameters()):
        objective.double()
    optimizer = build_optimizer(model, model.parameter_groups(), objective, schedule)
    records = {name: plain_record(record) for name, record in {**keep, "schedule": schedule}.items()}
    return Run(model, objective, optimizer, records)


def plain_record(record: Any) -> dict[str, Any]:
    """Return a settings record, a NamedTuple or a mapping as a dict of plain values, as a checkpoint holds them."""
    if isinstance(record, tuple) and hasattr(record, "_asdict"):
        record = record._asdict()  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(record, Mapping):
        return {
            name: list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
            for name, value in record.items()
        }
    return to_dict(record)


def record_differences(old: Mapping[str, Mapping[str, Any]], new: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return one line per field in which records differ, `record.field: old -> new`."""
    before = {f"{name}.{field}": value for name, record in old.items() for field, value in record.items()}
    after = {f"{name}.{field}": value for name, record in new.items() for field, value in record.items()}
    lines = [f"{name} is missing in the checkpoint" for name in after if name not in before]
    lines += [f"{name} is unknown to this version" for name in before if name not in after]
    return lines + [
        f"{name}: {before[name]} -> {after[name]}"
        for name in after
        if name in before and not _same(before[name], after[name])
    ]


def _same(old: Any, new: Any) -> bool:
    """Compare plain values; texts that lead to the same place on disk are the same path."""
    if isinstance(old, str) and isinstance(new, str) and "/" in old + new:
        return Path(old).resolve() == Path(new).resolve()
    return old == new


def refuse_sharded(model: nn.Module) -> None:
    """Refuse parameters that `fully_shard` has divided among processes.

    Raises:
        ValueError: naming the first of them, with the reason.
    """
    if not torch.distributed.is_available():
        return
    from torch.distributed.tensor import DTensor

    sharded = [name for name, parameter in model.named_parameters() if isinstance(parameter, DTensor)]
    if sharded:
        raise ValueError(
            f"model must hold whole parameters; {len(sharded)} are sharded by fully_shard, the first is {sharded[0]}. "
            "Training averages gradients by DDP, clips one norm over all of them and writes whole checkpoints: leave "
            "fully_shard out, and save memory by activation checkpointing or a frozen tower"
        )
