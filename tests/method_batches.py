"""A small model of any method, and random batches for it."""

from pathlib import Path
from typing import Any

import torch

from sets import tiny
from stmi_layers.training import Batch, Facts

SIZE = (16, 16)
MODALITIES = ("RGB", "NI", "TI")
WORDS = ("a", "red", "car")


def small_model(method: str, modalities: int, **changes: Any) -> Any:
    """The method around a tower of one block and width 16, with SFM in it; STMI reads captions."""
    names = MODALITIES[:modalities]
    run = tiny(Path(), method, **{"modalities": names, "masks": "given", **changes})
    return run.build(Facts(names, SIZE, num_identities=3, words=WORDS))


def random_batch(count: int, modalities: int, *, present: torch.Tensor | None = None) -> Batch:
    """Two samples of every identity; texts as the words encoder of STMI has them."""
    nowhere = torch.full((count,), -1)
    return Batch(
        images=torch.rand(count, modalities, 3, *SIZE),
        masks=torch.rand(count, modalities, *SIZE) < 0.4,
        present=present,
        labels=torch.arange(count) // 2,
        cameras=nowhere,
        views=nowhere,
        scenes=nowhere,
        texts=torch.randint(1, 5, (count, 32)),
        has_text=torch.ones(count, dtype=torch.bool),
        indices=torch.arange(count),
    )


def one_row(batch: Batch, index: int) -> Batch:
    """A batch of one of the samples."""
    return Batch(*(None if part is None else part[index : index + 1] for part in batch))
