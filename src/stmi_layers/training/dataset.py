"""From items on disk to batches: one geometry per sample, masks that stay on their images, reproducible sampling.

Everything random depends on a seed, the epoch and the index of the sample, and on nothing else: not on the number of
workers, nor on what else draws random numbers. `folders.py` and `layouts/` say how the files are laid out.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from stmi_layers.training.record import Item as Item
from stmi_layers.training.record import Source, read_image, read_mask
from stmi_layers.training.sampler import IdentitySampler as IdentitySampler
from stmi_layers.training.sampler import derange, mix_seed
from stmi_layers.training.sampler import query_gallery as query_gallery
from stmi_layers.training.splits import check_option, shorten
from stmi_layers.training.splits import read_split as read_split
from stmi_layers.training.transforms import Augmentation as Augmentation
from stmi_layers.training.transforms import dilate, erase, erode, move

MaskMode = Literal["given", "ones", "empty", "eroded", "dilated", "shuffled", "none"]
FROM_FILES = ("given", "eroded", "dilated", "shuffled")


class Sample(NamedTuple):
    """What a dataset returns; `Batch` says what the fields are."""

    images: Float[Tensor, "modalities 3 height width"]
    masks: Bool[Tensor, "modalities height width"] | None
    present: Bool[Tensor, " modalities"]
    label: int
    camera: int
    caption: str
    index: int


class Batch(NamedTuple):
    """Normalised images; masks (True = foreground, None with `mask_mode="none"`); which modalities are there; labels
    0 ... n-1; cameras; captions, "" where there is none; indices into the items of the dataset; where captions are."""

    images: Float[Tensor, "batch modalities 3 height width"]
    masks: Bool[Tensor, "batch modalities height width"] | None
    present: Bool[Tensor, "batch modalities"]
    labels: Int[Tensor, " batch"]
    cameras: Int[Tensor, " batch"]
    captions: list[str]
    indices: Int[Tensor, " batch"]
    has_caption: Bool[Tensor, " batch"]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one dataset."""
    masks = [sample.masks for sample in samples if sample.masks is not None]
    return Batch(
        images=torch.stack([sample.images for sample in samples]),
        masks=torch.stack(masks) if masks else None,
        present=torch.stack([sample.present for sample in samples]),
        labels=torch.tensor([sample.label for sample in samples]),
        cameras=torch.tensor([sample.camera for sample in samples]),
        captions=[sample.caption for sample in samples],
        indices=torch.tensor([sample.index for sample in samples]),
        has_caption=torch.tensor([sample.caption != "" for sample in samples]),
    )


class MultiModalDataset(Dataset[Sample]):
    """Items as tensors. Images with one channel (NIR, thermal) become three equal ones.

    Args:
        items: from `read_split`, all with the same modalities.
        size: height and width all images and masks are resized to.
        augment: how to vary the images; True is `Augmentation()`, False not at all.
        seed: of the augmentation and of "shuffled".
        mask_mode: "given"; "ones", all foreground; "empty", all background; "eroded" and "dilated", the given ones
            shrunk or grown by a 16th of the shorter side; "shuffled", each item has the masks of another one, the same
            in every epoch; "none", without masks.
        blank: paint the background grey (0 after normalisation) by the given or shuffled masks (by the given ones
            with "none").
        missing_mask: what to do when masks are needed and an image has none; "ones" makes it all foreground.
        cache: keep decoded and resized images in memory: modalities * 3 * height * width bytes per item, in every
            worker. Only lasting (`persistent_workers=True`) or no workers profit.
        mean: subtracted from values in [0, 1], one number or one per colour channel.
        std: divides what is left.

    Attributes:
        identities: the identity behind each label.
        labels: 0 ... n-1, one per item.

    Raises:
        ValueError: when there are no items, an option is out of its range, or a needed mask is missing.
    """

    def __init__(
        self,
        items: Sequence[Item],
        size: tuple[int, int] = (256, 128),
        *,
        augment: Augmentation | bool = False,
        seed: int = 0,
        mask_mode: MaskMode = "given",
        blank: bool = False,
        missing_mask: Literal["error", "ones"] = "error",
        cache: bool = False,
        mean: float | tuple[float, float, float] = 0.5,
        std: float | tuple[float, float, float] = 0.5,
    ) -> None:
        check_option("mask_mode", mask_mode, get_args(MaskMode))
        check_option("missing_mask", missing_mask, ("error", "ones"))
        if not items or len({len(item.images) for item in items}) > 1:
            raise ValueError(f"items must be some, all with the same number of modalities; received {len(items)}")
        if min(size) < 1:
            raise ValueError(f"size must be a positive height and width; received {size}")
        if blank and mask_mode in ("ones", "empty"):
            raise ValueError(f"blank needs masks to blank by; received mask_mode={mask_mode!r}")
        self.items, self.size, self.seed = list(items), size, seed
        self.augment = Augmentation() if augment is True else augment or None
        self.mask_mode, self.blank, self.cache = mask_mode, blank, cache
        self.mean, self.std = (torch.tensor(value).reshape(-1, 1, 1) for value in (mean, std))
        if any(value.numel() not in (1, 3) for value in (self.mean, self.std)) or not (self.std > 0).all():
            raise ValueError(f"mean and std must be one number or three, std positive; received {mean} and {std}")
        self.identities = sorted({item.identity for item in items})
        label_of = {identity: label for label, identity in enumerate(self.identities)}
        self.labels = [label_of[item.identity] for item in items]
        self._mask_of = derange(len(items), seed) if mask_mode == "shuffled" else list(range(len(items)))
        if missing_mask == "error" and (blank or mask_mode in FROM_FILES):
            self._refuse_missing_masks()
        # Shared, so that it reaches workers that outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._images: dict[Source, Tensor] = {}
        self._masks: dict[Path, Tensor] = {}

    def __len__(self) -> int:
        return len(self.items)

    def set_epoch(self, epoch: int) -> None:
        """Augment differently from now on, workers included; the same epoch gives the same samples."""
        self._epoch.fill_(epoch)

    def picture(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """An item to look at: resized images (modalities, height, width, 3) as bytes, and its Bool masks."""
        images, masks = self._read(index)
        return images.permute(0, 2, 3, 1).numpy(), masks.numpy()

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        item = self.items[index]
        images, masks = self._read(index)
        present = torch.tensor([path is not None for path in item.images])
        # The default generator of the CPU alone: torch.manual_seed would also reset those of the GPUs.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(mix_seed(self.seed, int(self._epoch), index))
            if self.augment is not None:
                images, masks, _ = move(images, masks, self.augment)
            images = (images / 255 - self.mean) / self.std
            if self.blank:
                images = images.where(masks[:, None], 0.0)
            if self.augment is not None:
                images = erase(images, self.augment)
        images = images.where(present[:, None, None, None], 0.0)
        if self.mask_mode in ("ones", "empty"):
            masks = torch.full_like(masks, self.mask_mode == "ones")
        returned = None if self.mask_mode == "none" else masks
        return Sample(images, returned, present, self.labels[index], item.camera, item.caption or "", index)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        """Bytes (modalities, 3, height, width), black where missing, and Bool masks, True where missing."""
        images = [self._image(source) for source in self.items[index].images]
        needed = self.blank or self.mask_mode in FROM_FILES
        paths = self.items[self._mask_of[index]].masks
        masks = torch.stack([self._mask(path if needed else None) for path in paths])
        if self.mask_mode in ("eroded", "dilated"):
            change = erode if self.mask_mode == "eroded" else dilate
            masks = change(masks, round(min(self.size) / 16))
        return torch.stack(images), masks

    def _image(self, source: Source | None) -> Tensor:
        if source is None:
            return torch.zeros(3, *self.size, dtype=torch.uint8)
        if source in self._images:
            return self._images[source]
        height, width = self.size
        resized = read_image(source).convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
        image = torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()
        if self.cache:
            self._images[source] = image
        return image

    def _mask(self, path: Path | None) -> Tensor:
        if path is None:
            return torch.ones(self.size, dtype=torch.bool)
        if path in self._masks:
            return self._masks[path]
        height, width = self.size
        # Pillow takes the pixel at the centre; the "nearest" of torch would move a mask by half a pixel.
        mask = np.array(Image.fromarray(read_mask(path)).resize((width, height), Image.Resampling.NEAREST))
        if self.cache:
            self._masks[path] = torch.from_numpy(mask)
        return torch.from_numpy(mask)

    def _refuse_missing_masks(self) -> None:
        missing = [
            item.name
            for item in self.items
            if any(image is not None and mask is None for image, mask in zip(item.images, item.masks, strict=True))
        ]
        if missing:
            raise ValueError(
                f"{len(missing)} of {len(self.items)} items lack a mask in mask/ or mask_<MODALITY>/: "
                f"{shorten(missing)}; add them, or pass missing_mask='ones', "
                "mask_mode='ones' (--masks ones) or mask_mode='none' (--masks none)"
            )
