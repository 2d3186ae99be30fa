"""Modality dropout: samples lose modalities in training, so that a model learns to work without them."""

import torch
from jaxtyping import Float
from torch import Tensor

from stmi_layers.training.contract import Batch
from stmi_layers.training.seeds import mix_seed


def modality_draws(samples: int, modalities: int, *, seed: int, epoch: int) -> Float[Tensor, "samples modalities"]:
    """Draw a number in [0, 1) per sample of the dataset and modality, from the seed and the epoch alone."""
    generator = torch.Generator().manual_seed(mix_seed(seed, epoch, 0, 1))
    return torch.rand(samples, modalities, generator=generator)


def drop_modalities(batch: Batch, draws: Float[Tensor, "samples modalities"], probability: float) -> Batch:
    """Treat modalities whose draw is below `probability` as missing; the modality with the largest draw stays.

    Args:
        batch: batch on the CPU, as the loader returns it.
        draws: result of `modality_draws` for all samples of the dataset.
        probability: probability of losing a modality that is present.
    """
    drawn = draws[batch.indices]
    present = torch.ones_like(drawn, dtype=torch.bool) if batch.present is None else batch.present
    drawn = drawn.where(present, -1.0)
    keep = present & ((drawn >= probability) | (drawn == drawn.amax(dim=1, keepdim=True)))
    images = batch.images.where(keep[:, :, None, None, None], 0.0)
    return batch._replace(images=images, present=None if keep.all() else keep)
