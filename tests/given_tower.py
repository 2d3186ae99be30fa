"""Tower with given tokens, and batches for this tower: tests of the modules after a tower need no images."""

import torch
from torch import Tensor, nn

from stmi_layers.training import Batch


class GivenTower(nn.Module):
    """A `Backbone` that returns the same tokens in evaluation, whatever the images."""

    def __init__(self, patches: Tensor, globals_: Tensor) -> None:
        super().__init__()
        self.patches, self.globals = patches, globals_
        self.dim, self.grid = patches.shape[3], (1, patches.shape[2])

    def forward(
        self, images: Tensor, masks: Tensor | None = None, cameras: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the given patches (batch modalities patches dim) and globals (batch modalities dim)."""
        return self.patches, self.globals


def batch_of(
    count: int,
    modalities: int,
    *,
    size: tuple[int, int] = (16, 16),
    present: Tensor | None = None,
    texts: Tensor | None = None,
    has_text: Tensor | None = None,
) -> Batch:
    """A batch of random images with masks, two samples of every identity."""
    nowhere = torch.full((count,), -1)
    return Batch(
        images=torch.rand(count, modalities, 3, *size),
        masks=torch.rand(count, modalities, *size) < 0.4,
        present=present,
        labels=torch.arange(count) // 2,
        cameras=nowhere,
        views=nowhere,
        scenes=nowhere,
        texts=texts,
        has_text=torch.full((count,), texts is not None) if has_text is None else has_text,
        indices=torch.arange(count),
    )
