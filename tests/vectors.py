"""Arrays computed by released research codes, stored outside the repository. Tests skip where they are missing."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "shared" / "vectors"
MODALITIES = ("rgb", "nir", "tir")


def every(*patterns: str) -> pytest.MarkDecorator:
    """Run a test on the `path` of every file that matches; skip it, saying so, where there is none."""
    found = [pytest.param(path, id=path.stem) for pattern in patterns for path in sorted(FOLDER.glob(pattern))]
    reason = f"no {' or '.join(patterns)} in shared/vectors beside the project"
    missing = pytest.param(None, id="missing", marks=pytest.mark.skip(reason=reason))
    return pytest.mark.parametrize("path", found or [missing])


def load(path: Path, dtype: torch.dtype | None = None) -> dict[str, Tensor]:
    """Read the numbers and masks of a file; floats in `dtype`, or as they are. Texts are left out."""
    with np.load(path) as arrays:
        found = {name: torch.as_tensor(arrays[name]) for name in arrays.files if arrays[name].dtype.kind in "fiub"}
    return {name: value.to(dtype) if dtype and value.is_floating_point() else value for name, value in found.items()}


def meta(path: Path) -> dict[str, Any]:
    """Read the settings with which a file was made."""
    with np.load(path) as arrays:
        return json.loads(str(arrays["meta"]))


def part(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Select what is named `prefix` and more, under the rest of the name."""
    return {name.removeprefix(prefix): value for name, value in arrays.items() if name.startswith(prefix)}


def stacked(arrays: dict[str, Tensor], name: str) -> Tensor:
    """Stack the arrays of the modalities along the second axis; `{}` in `name` stands for the modality."""
    return torch.stack([arrays[name.format(modality)] for modality in MODALITIES], dim=1)


def assert_equal(actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Compare up to rounding, relative to the largest value: the files hold float64 and float32."""
    if tolerance is None:
        tolerance = 1e-11 if expected.dtype == torch.float64 else 2e-5
    bound = tolerance * max(expected.abs().max().item(), 1e-3)
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=0, atol=bound)
