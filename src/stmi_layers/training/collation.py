"""Samples, and their collation into batches that reach the training process without a copy."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Shaped
from torch import Tensor
from torch.utils.data import default_collate

from stmi_layers.training.contract import Batch


class Sample(NamedTuple):
    """One item of a dataset, with the fields of `Batch`."""

    images: Float[Tensor, "modalities 3 height width"]
    masks: Bool[Tensor, "modalities height width"] | None
    present: Bool[Tensor, " modalities"]
    label: int
    camera: int
    view: int
    scene: int
    text: Shaped[Tensor, "..."] | None
    has_text: bool
    index: int


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one dataset; in a worker process images and masks go straight into shared memory."""
    masks = [sample.masks for sample in samples if sample.masks is not None]
    texts = [sample.text for sample in samples if sample.text is not None]
    labels, cameras, views, scenes, indices, has_text, present = _in_one_storage(
        torch.tensor([sample.label for sample in samples]),
        torch.tensor([sample.camera for sample in samples]),
        torch.tensor([sample.view for sample in samples]),
        torch.tensor([sample.scene for sample in samples]),
        torch.tensor([sample.index for sample in samples]),
        torch.tensor([sample.has_text for sample in samples]),
        torch.stack([sample.present for sample in samples]),
    )
    return Batch(
        images=default_collate([sample.images for sample in samples]),
        masks=default_collate(masks) if masks else None,
        present=None if present.all() else present,
        labels=labels,
        cameras=cameras,
        views=views,
        scenes=scenes,
        texts=default_collate(texts) if texts else None,
        has_text=has_text,
        indices=indices,
    )


def _in_one_storage(*tensors: Tensor) -> list[Tensor]:
    """Copy tensors, widest numbers first, into one storage, because a worker opens a file for each storage."""
    block = torch.cat([tensor.flatten().view(torch.uint8) for tensor in tensors])
    parts = block.split([tensor.nbytes for tensor in tensors])
    return [part.view(tensor.dtype).view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]
