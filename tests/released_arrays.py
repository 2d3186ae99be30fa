"""Arrays that released research codes computed, read in place where they lie beside the repository."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

FOLDER = Path(__file__).parents[1].parent / "shared" / "vectors"


def files(pattern: str) -> list:
    """Every matching file as a parameter of a test, or one that skips and says why."""
    found = sorted(FOLDER.glob(pattern))
    if found:
        return [pytest.param(path, id=path.stem) for path in found]
    return [pytest.param(None, id=pattern, marks=pytest.mark.skip(reason=f"no {pattern} in {FOLDER}"))]


class Arrays:
    """One file: arrays in float64, ids and masks as they are."""

    def __init__(self, path: Path) -> None:
        with np.load(path) as arrays:
            self.arrays = {name: arrays[name] for name in arrays.files}
        self.meta = json.loads(str(self.arrays["meta"]))

    def __getitem__(self, name: str) -> Tensor:
        tensor = torch.from_numpy(self.arrays[name])
        return tensor.double() if tensor.is_floating_point() else tensor

    def under(self, prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): self[name] for name in self.arrays if name.startswith(prefix)}


def assert_near(actual: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    """Equal relative to the greatest of the expected numbers."""
    assert actual.shape == expected.shape
    error = (actual.detach() - expected).abs().max() / expected.abs().max().clamp(min=1e-300)
    assert error <= tolerance, f"relative error {error:.1e}"
