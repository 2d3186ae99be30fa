"""Arrays that released research codes computed; they lie beside the project, and a test without them is skipped."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[2] / "shared" / "vectors"


class Vectors:
    """One file: every array as a tensor in float64 where it holds floats."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            values = {name: arrays[name] for name in arrays.files}
        self.meta: dict[str, Any] = json.loads(str(values.pop("meta")))
        self.values = {name: torch.from_numpy(np.asarray(value)) for name, value in values.items()}

    def __getitem__(self, name: str) -> Tensor:
        value = self.values[name]
        return value.double() if value.is_floating_point() else value

    def under(self, prefix: str) -> dict[str, Tensor]:
        """The arrays whose name begins with `prefix`, by the rest of their names."""
        return {name.removeprefix(prefix): self[name] for name in self.values if name.startswith(prefix)}


def files(pattern: str) -> list:
    """Every file that matches as a parameter of a test, or one that skips and says why."""
    paths = sorted(FOLDER.glob(pattern))
    if paths:
        return [pytest.param(path, id=path.stem) for path in paths]
    skipped = pytest.mark.skip(reason=f"no {pattern} in shared/vectors beside the project")
    return [pytest.param(None, id=pattern, marks=skipped)]


def every(pattern: str) -> pytest.MarkDecorator:
    """Run a test on every file that matches."""
    return pytest.mark.parametrize("vectors", files(pattern))


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal relative to the greatest of the expected numbers."""
    assert actual.shape == expected.shape
    error = (actual.detach() - expected).abs().max() / expected.abs().max().clamp(min=1e-300)
    assert error <= tolerance, f"relative error {error:.1e}"
