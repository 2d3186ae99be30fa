"""Small model of any method, and random batches for this model."""

from pathlib import Path
from typing import Any

import torch

from sets import tiny
from stmi_layers.training import Batch, Facts

SIZE = (16, 16)
MODALITIES = ("RGB", "NI", "TI")
WORDS = ("a", "red", "car")


def small_model(method: str, modalities: int, **changes: Any) -> Any:
    """The method around a tower of one block and width 16, with SFM in it; STMI and NEXT read captions."""
    names = MODALITIES[:modalities]
    run = tiny(Path(), method, **{"modalities": names, "masks": "given", **changes})
    return run.build(Facts(names, SIZE, num_identities=3, words=WORDS))


def without_zeros(model: Any) -> Any:
    """The model with random numbers in all parameters that start at 0, behind which others learn nothing at first."""
    for parameter in model.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def random_batch(count: int, modalities: int, *, present: torch.Tensor | None = None, model: Any = None) -> Batch:
    """Two samples of every identity; captions as `model` encodes them, common ones and one per modality in turn."""
    captions = [("A red car.",), ("A car. Red.", "", "A red car. A car.")[:modalities]]
    texts = None if model is None else model.encode((captions * count)[:count])
    nowhere = torch.full((count,), -1)
    return Batch(
        images=torch.rand(count, modalities, 3, *SIZE),
        masks=torch.rand(count, modalities, *SIZE) < 0.4,
        present=present,
        labels=torch.arange(count) // 2,
        cameras=nowhere,
        views=nowhere,
        scenes=nowhere,
        texts=torch.randint(1, 5, (count, 32)) if texts is None else texts,
        has_text=torch.ones(count, dtype=torch.bool),
        indices=torch.arange(count),
    )


def one_row(batch: Batch, index: int) -> Batch:
    """A batch of one of the samples."""
    return Batch(*(None if part is None else part[index : index + 1] for part in batch))
