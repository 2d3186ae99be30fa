"""Arrays that the released code of Signal made: in the dtype of the file, and one per modality."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MODALITIES = ("rgb", "nir", "tir")


def load(path: Path) -> dict[str, Tensor]:
    """The numbers of a file; texts are left out."""
    with np.load(path) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files if arrays[name].dtype.kind in "fiub"}


def part(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """What is named `prefix` and more, under the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def stacked(arrays: dict[str, Tensor], name: str) -> Tensor:
    """One array per modality, along the second axis."""
    return torch.stack([arrays[f"{name}_{modality}"] for modality in MODALITIES], dim=1)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Equal up to rounding, relative to the largest value: the files hold float64 and float32."""
    if tolerance is None:
        tolerance = 1e-11 if expected.dtype == torch.float64 else 2e-5
    bound = tolerance * max(expected.abs().max().item(), 1e-3)
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=bound)
