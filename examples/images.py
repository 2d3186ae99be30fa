"""Dataset of the items of a listing, with the size, ranges and masks that the model was trained with."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from examples.masking import Maker
from examples.prepare.masks.classical import segment
from examples.prepare.masks.regions import clean, stretch_mask
from stmi_layers.training import Data, Item, MultiModalDataset
from stmi_layers.training.collation import Sample
from stmi_layers.training.transforms import GREY

Policy = Literal["given", "classical", "sam2", "sam3", "ones", "none"]
MADE = ("classical", "sam2", "sam3")
# Masks in training that are ablations, and the masks to use instead in deployment.
TRAINED = {"eroded": "given", "dilated": "given", "shuffled": "given"}
WORKING_SIZE = (64, 64)


class Images(Dataset[Sample]):
    """Samples of items that are read one at a time.

    Args:
        items: items of a listing.
        data: settings of the data that the model was trained with.
        masks: policy for masks; None takes that of the training.
        maker: function that makes the mask of an item, for the policies sam2 and sam3.
    """

    def __init__(
        self, items: Sequence[Item], data: Data, masks: Policy | None = None, maker: Maker | None = None
    ) -> None:
        self.items, self.policy = items, masks
        self.masks = policy_of(data, masks)
        self.data, self.maker = data, maker
        self._ranges = [data.ranges.get(name) for name in data.modalities]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Sample:
        item = self.items[index]
        if self.masks not in MADE:
            return self._one(item, self.masks)[0]._replace(index=index)
        sample = self._one(replace(item, masks=(None,) * len(item.masks)), "none")[0]
        mask = self._made(item, sample)
        trained = self.data.masks
        images, masks = sample.images, mask.expand(len(sample.images), -1, -1)
        if trained.startswith("blank"):
            images = images.where(masks[:, None] | ~sample.present[:, None, None, None], GREY)
        handed = None if trained in ("blank", "none") else masks
        return sample._replace(images=images, masks=handed, index=index)

    def _made(self, item: Item, sample: Sample) -> Tensor:
        if self.maker is None:
            return classical_mask(sample.images, sample.present)
        return torch.from_numpy(stretch_mask(self.maker(item), self.data.image_size))

    def _one(self, item: Item, masks: str) -> MultiModalDataset:
        return MultiModalDataset([item], self.data.image_size, masks=masks, ranges=self._ranges)  # pyright: ignore[reportArgumentType]


def policy_of(data: Data, masks: Policy | None) -> str:
    """Return the masks of the samples: those of the training, unless a policy is given.

    Raises:
        ValueError: when a model that was trained on images with a grey background would get other images.
    """
    if masks is None or masks == "given":
        trained = TRAINED.get(data.masks, data.masks)
        return "given" if masks == "given" and trained in ("ones", "empty", "none") else trained
    if masks not in MADE and data.masks.startswith("blank"):
        raise ValueError(
            f"masks must be given or one of {', '.join(MADE)} for a model trained with masks={data.masks!r}; received "
            f"{masks!r}"
        )
    return masks


def classical_mask(images: Tensor, present: Tensor) -> Tensor:
    """Make a mask (height width) by the classical method, from all present modalities.

    Args:
        images: values in [0, 1], (modalities 3 height width).
        present: True for present modalities.
    """
    size, there = images.shape[-2:], images[present]
    small = torch.stack([_resized(image) for image in there])
    together = segment(small, 0.5).mean(dim=0).numpy()
    grown = np.array(Image.fromarray(together).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    return torch.from_numpy(clean(grown >= 0.5))


def _resized(image: Tensor) -> Tensor:
    pixels = (image * 255).round().byte().permute(1, 2, 0).numpy()
    working = Image.fromarray(pixels).resize(WORKING_SIZE, Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(working)).permute(2, 0, 1) / 255
