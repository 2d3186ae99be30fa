"""Checkpoints: written whole or not at all, read without running code, compared with the model by name."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from stmi_layers._archives import find_damage
from stmi_layers.training.files import refuse_full, write_whole

FORMAT = "stmi-layers-1"


class Checkpoint(NamedTuple):
    """State of a run after an epoch, in plain values and tensors.

    Attributes:
        records: settings and facts the run was made with, by name, each a dict of plain values.
        model: state dict of the model.
        objective: state dict of the objective.
        optimizer: state dict of the optimizer.
        epoch: number of epochs done.
        history: one entry per epoch.
    """

    records: dict[str, dict[str, Any]]
    model: dict[str, Tensor]
    objective: dict[str, Tensor]
    optimizer: dict[str, Any]
    epoch: int
    history: list[dict[str, Any]]


TYPES: dict[str, type] = {
    "records": dict,
    "model": dict,
    "objective": dict,
    "optimizer": dict,
    "epoch": int,
    "history": list,
}


# Fields of a history entry that hold a number, and fields that hold numbers by name.
NUMBERS, NAMED_NUMBERS = ("epoch", "loss", "learning_rate", "cpu_seconds"), ("losses", "watch", "mAP")


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write beside `path` and rename, so that a killed run or a full disk leaves the previous checkpoint intact.

    Raises:
        ValueError: naming the file and the reason when it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with write_whole(path) as file:
        torch.save({"format": FORMAT, **checkpoint._asdict()}, file)


def check_room(folder: Path, *modules: nn.Module) -> None:
    """Refuse a folder on a disk without room for a checkpoint of `modules` and their optimizer.

    Raises:
        ValueError: naming the folder, what a checkpoint takes, and what is free.
    """
    sizes = [value.numel() * value.element_size() for module in modules for value in module.state_dict().values()]
    learned = [p.numel() * p.element_size() for module in modules for p in module.parameters() if p.requires_grad]
    refuse_full(folder, sum(sizes) + 2 * sum(learned), "a checkpoint of ")


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a file of `save_checkpoint`, on the CPU, without running code from the file.

    The checksums of the archive are verified before anything is built from it, then the type of every entry.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged, is something else, or lacks an entry.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train first, or give the path of a checkpoint.pt")
    if damage := find_damage(path):
        what = "is damaged, or is not a checkpoint of this trainer"
        raise ValueError(f"{path} {what}: {damage}. Use another copy, or train again")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # The kind of error depends on the bytes that torch.load stumbles over.
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: damaged, or not written by this trainer") from error
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this trainer (no format {FORMAT!r})")
    problems = _wrong_entries(content)
    if problems:
        raise ValueError(f"{path} is not a complete checkpoint: it {'; it '.join(problems[:5])}")
    return Checkpoint(**content)


def _wrong_entries(content: dict[str, Any]) -> list[str]:
    """List entries that are missing, unknown, or of the wrong type."""
    problems = [f"lacks {name!r}" for name in TYPES if name not in content]
    problems += [f"has an unknown entry {name!r}" for name in content if name not in TYPES]
    held = {name: content[name] for name in TYPES if name in content}
    problems += [
        f"must hold {name!r} as {TYPES[name].__name__}, and holds {type(value).__name__}"
        for name, value in held.items()
        if not isinstance(value, TYPES[name]) or isinstance(value, bool)
    ]
    if problems:
        return problems
    if content["epoch"] < 0:
        problems.append(f"must hold 'epoch' of at least 0, and holds {content['epoch']}")
    kinds = {"records": dict, "model": Tensor, "objective": Tensor, "history": dict}
    problems += [
        f"must hold a {kind.__name__} as {name}[{key!r}], and holds {type(value).__name__}"
        for name, kind in kinds.items()
        for key, value in (enumerate(content[name]) if name == "history" else content[name].items())
        if not isinstance(value, kind)
    ]
    return problems or [
        f"must hold history[{number}] as numbers; its {name!r} is {_missing_or_type(entry, name)}"
        for number, entry in enumerate(content["history"])
        for name in (*NUMBERS, *NAMED_NUMBERS)
        if not _is_numeric(entry, name)
    ]


def _is_numeric(entry: Mapping[str, Any], name: str) -> bool:
    """Tell whether a history entry has the numbers that figures and reports read; unscored epochs have no mAP."""
    value = entry.get(name, {} if name == "mAP" else None)
    values = [value] if name in NUMBERS else value.values() if isinstance(value, dict) else [None]
    return all(isinstance(one, int | float) and not isinstance(one, bool) for one in values)


def _missing_or_type(entry: Mapping[str, Any], name: str) -> str:
    return f"a {type(entry[name]).__name__}" if name in entry else "missing"


def load_weights(module: nn.Module, weights: Mapping[str, Tensor], what: str, where: object = "the checkpoint") -> None:
    """Load all of `weights`, or raise one error that names every parameter that does not fit.

    Args:
        module: module to fill.
        weights: state dict to load.
        what: name of the module in the message.
        where: file of the weights, for the message.

    Raises:
        ValueError: when names, shapes or kinds of numbers differ. A different precision of the same kind is cast.
    """
    own = module.state_dict()
    problems = [f"{name} is missing in the checkpoint" for name in own.keys() - weights.keys()]
    problems += [f"{name} is unknown to the model" for name in weights.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(weights[name].shape)} in the checkpoint and {tuple(own[name].shape)} in the model"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    problems += [
        f"{name} is {_kind(weights[name])} in the checkpoint and {_kind(own[name])} in the model"
        for name in own.keys() & weights.keys()
        if _kind(own[name]) != _kind(weights[name])
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:10])
        raise ValueError(f"{where} does not fit the {what}; {len(problems)} differences:\n  {shown}")
    module.load_state_dict(dict(weights))


def _kind(value: Tensor) -> str:
    """Return the kind of numbers; a cast between two kinds would lose information."""
    numbers = "complex" if value.is_complex() else "floating" if value.is_floating_point() else str(value.dtype)
    return f"{numbers}, {value.layout}" if value.layout is not torch.strided else numbers
