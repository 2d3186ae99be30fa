"""Dataset of multi-modal samples: items on disk as tensors, with masks that stay aligned with their images.

Random draws depend only on a seed, the epoch and the index of the sample, not on the number of workers.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from stmi_layers._checks import check_choice
from stmi_layers.training.cache import Pixels
from stmi_layers.training.collation import Sample
from stmi_layers.training.contract import Facts
from stmi_layers.training.record import Item, joined, split_words
from stmi_layers.training.seeds import derange, mix_seed
from stmi_layers.training.settings import Data, Masks, Range
from stmi_layers.training.splits import read_split, refuse_missing_masks
from stmi_layers.training.transforms import GREY, Augmentation, dilate, erase_, erode, move
from stmi_layers.training.validation import training_items

# Options of `masks` that read mask files.
FROM_FILES = ("given", "eroded", "dilated", "shuffled", "blank", "blank+given")


class MultiModalDataset(Dataset[Sample]):
    """Items as tensors. Images with one channel (NIR, thermal) get three equal channels.

    Args:
        items: from `read_split`, all with the same number of modalities.
        size: height and width in pixels that all images and masks are resized to.
        augment: variation of the images; True is `Augmentation()`, False none.
        seed: seed of the augmentation and of "shuffled".
        masks: "given", masks from files; "ones", all foreground; "empty", all background; "eroded" and "dilated", the
            given masks shrunk or grown by a 16th of the shorter side; "shuffled", each item has the masks of another
            item, the same in every epoch; "none", no masks. "blank" returns no masks and paints the background of the
            images grey; "blank+given" paints the background and returns the masks.
        missing_masks: policy for an image without a mask where masks are needed; "ones" makes all of it foreground.
        ranges: counts of deep images that become black and white, one entry per modality; None for 8-bit images.
        cache: keep decoded images, modalities * 3 * height * width bytes per item, and masks, height * width bytes
            per file, in every worker. Helps only without workers or with `persistent_workers=True`.

    Attributes:
        identities: identity of each label.
        labels: label of each item, 0 ... n-1; -1 where the identity is unknown.
        texts: encoded captions, one row per item; None before `encode_captions`.
        split: name of the split in reports; "test" unless `load_split` read another one.

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
        masks: Masks = "given",
        missing_masks: str = "error",
        ranges: Sequence[Range | None] | None = None,
        cache: bool = False,
    ) -> None:
        check_choice("masks", masks, get_args(Masks))
        check_choice("missing_masks", missing_masks, ("error", "ones"))
        if not items or len({len(item.images) for item in items}) > 1:
            raise ValueError(f"items must be at least one, all with as many modalities; received {len(items)} items")
        if min(size) < 1:
            raise ValueError(f"size must be a positive height and width; received {size}")
        self.items, self.size, self.seed, self.masks = list(items), size, seed, masks
        self.augment = Augmentation() if augment is True else augment or None
        known = {item.identity for item in items if item.identity is not None}
        self.identities = sorted(known, key=lambda identity: (isinstance(identity, str), identity))
        label_of = {identity: label for label, identity in enumerate(self.identities)} | {None: -1}
        self.labels = [label_of[item.identity] for item in items]
        self.texts: Tensor | None = None
        self.split = "test"
        self._mask_of = derange(len(items), seed) if masks == "shuffled" else list(range(len(items)))
        if missing_masks == "error" and masks in FROM_FILES:
            refuse_missing_masks(items)
        self._ranges = list(ranges) if ranges else [None] * len(items[0].images)
        self._pixels = Pixels(items, size, masks=masks in FROM_FILES, keep=cache)
        # Shared, so that it reaches workers that outlive an epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.items)

    def set_epoch(self, epoch: int) -> None:
        """Augment differently from now on, workers included; the same epoch gives the same samples."""
        self._epoch.fill_(epoch)

    def encode_captions(self, encode: Callable[[Sequence[tuple[str, ...]]], Tensor | None]) -> None:
        """Encode the captions of all items once, and keep the result in `texts`.

        Raises:
            ValueError: when the result does not have one row per item.
        """
        texts = encode([item.captions for item in self.items])
        if texts is not None and len(texts) != len(self):
            raise ValueError(f"encode must return a row per sample, {len(self)}; received {len(texts)}")
        self.texts = texts

    def picture(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return an item for display: resized images (modalities, height, width, 3) as bytes, and its Bool masks."""
        images, masks = self._read(index)
        return images.permute(0, 2, 3, 1).numpy(), masks.numpy()

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        item = self.items[index]
        images, masks = self._read(index)
        present = torch.tensor([source is not None for source in item.images])
        generator = torch.Generator().manual_seed(mix_seed(self.seed, int(self._epoch), index))
        if self.augment is not None:
            images, masks, _ = move(images, masks, self.augment, generator=generator)
        images = images.float().div_(255)
        if self.masks.startswith("blank"):
            images = images.where(masks[:, None], GREY)
        images = images if self.augment is None else erase_(images, self.augment, generator)
        if not present.all():
            images = images.where(present[:, None, None, None], 0.0)
        if self.masks in ("ones", "empty"):
            masks = torch.full_like(masks, self.masks == "ones")
        return Sample(
            images=images,
            masks=None if self.masks in ("none", "blank") else masks,
            present=present,
            label=self.labels[index],
            camera=_number(item.camera),
            view=_number(item.view),
            scene=_number(item.scene),
            text=None if self.texts is None else self.texts[index],
            has_text=any(item.captions),
            index=index,
        )

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        """Read images as bytes (modalities, 3, height, width), black where missing, and Bool masks, else True."""
        pairs = zip(self.items[index].images, self._ranges, strict=True)
        images = torch.stack([self._pixels.image(source, bounds) for source, bounds in pairs])
        paths = self.items[self._mask_of[index]].masks
        distinct = {path: self._pixels.mask(path) for path in set(paths)}  # modalities may share a file
        masks = torch.stack([distinct[path] for path in paths])
        if self.masks in ("eroded", "dilated"):
            masks = (erode if self.masks == "eroded" else dilate)(masks, round(min(self.size) / 16))
        return images, masks


def _number(value: int | None) -> int:
    return -1 if value is None else value


def load_split(
    data: Data, split: str, *, augment: Augmentation | bool = False, seed: int = 0, cache: bool = False
) -> MultiModalDataset:
    """Load a split of a set by the settings of the set.

    Args:
        data: the set, and how it is read.
        split: `train`, `test`, or another split of the set; also `validation` where `data` holds identities out.
        augment: variation of the images; False in evaluation.
        seed: seed of the augmentation, and of shuffled masks and captions.
        cache: keep decoded images in memory; of no use in evaluation, which reads each image once.

    Raises:
        FileNotFoundError: when the set, the split, a modality or required captions are not there.
        ValueError: when files break the layout, a training item has no identity, or too few identities are left.
    """
    source = "train" if split == "validation" and data.validation else split
    items = read_split(
        data.root,
        source,
        data.modalities,
        captions=data.captions,
        missing_modality=data.missing_modality,
        damaged=data.damaged,
        ranges=data.ranges,
    )
    if source == "train":
        items = training_items(items, data, split)
    if data.shuffled_captions:
        others = [items[index].captions for index in derange(len(items), seed)]
        items = [replace(item, captions=captions) for item, captions in zip(items, others, strict=True)]
    dataset = MultiModalDataset(
        items,
        data.image_size,
        augment=augment,
        seed=seed,
        masks=data.masks,
        missing_masks=data.missing_masks,
        ranges=[data.ranges.get(name) for name in data.modalities],
        cache=cache,
    )
    dataset.split = split
    return dataset


def facts_of(dataset: MultiModalDataset, modalities: Sequence[str]) -> Facts:
    """Collect the facts of a training set that a model may be built from."""
    items = dataset.items
    counts = Counter(word for item in items for word in split_words(joined(item.captions)))
    return Facts(
        modalities=tuple(modalities),
        image_size=dataset.size,
        num_identities=len(dataset.identities),
        cameras=tuple(sorted({item.camera for item in items if item.camera is not None})),
        views=tuple(sorted({item.view for item in items if item.view is not None})),
        words=tuple(sorted(counts, key=lambda word: (-counts[word], word))),
    )
