"""Checkpoints that are whole or absent, hold no code, and say what does not fit."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FORMAT = "stmi-example-1"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write next to `path` first and rename, so that a killed run leaves the previous checkpoint intact."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    with unfinished.open("wb") as file:
        torch.save({"format": FORMAT, **content}, file)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read what `save_checkpoint` wrote, on the CPU, without running code from the file.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when the file is damaged or something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}; train first, or give the path of a checkpoint.pt")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    # What torch.load raises depends on the bytes it stumbles over.
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} cannot be read as a checkpoint: damaged, or not written by this trainer") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a checkpoint of this trainer (no format {FORMAT!r})")
    return content


def load_weights(module: nn.Module, weights: dict[str, Tensor], what: str) -> None:
    """Load all of `weights`, or raise one error that names every parameter that does not fit.

    Raises:
        ValueError: when names or shapes differ.
    """
    own = module.state_dict()
    problems = [f"{name} is missing in the checkpoint" for name in own.keys() - weights.keys()]
    problems += [f"{name} is unknown to the model" for name in weights.keys() - own.keys()]
    problems += [
        f"{name} is {tuple(weights[name].shape)} in the checkpoint and {tuple(own[name].shape)} in the model"
        for name in own.keys() & weights.keys()
        if own[name].shape != weights[name].shape
    ]
    if problems:
        shown = "\n  ".join(sorted(problems)[:10])
        raise ValueError(f"the checkpoint does not fit the {what}; {len(problems)} differences:\n  {shown}")
    module.load_state_dict(weights)
