"""Expected content of a small set: changed together with the files, and compared with what reading returns."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from stmi_layers.training import Item
from stmi_layers.training.images import read_image, read_mask
from stmi_layers.training.settings import Range

MODALITIES = ("RGB", "TI")
SPLITS = {"train": (1, 2), "test": (3, 4)}
SIDE = 16


@dataclass
class Content:
    """What an item is: images as bytes (height, width, 3), a mask, a caption and a column; None for "anything"."""

    images: dict[str, np.ndarray | None]
    mask: np.ndarray | None
    caption: str | None
    day: str | None


@dataclass
class Variant:
    """A set on disk, and what is known about it.

    Attributes:
        root: what a command is pointed at.
        truth: the items of the training split.
        what: what was changed, in words.
        names: one of these has to stand in a refusal, or in the count of what was passed over.
        ranges: counts of deep images by modality.
        tolerance: mean difference of an image that a lossy format makes.
    """

    root: Path
    truth: dict[str, Content]
    what: str = "nothing"
    names: tuple[str, ...] = ()
    ranges: dict[str, Range] = field(default_factory=dict)
    tolerance: float = 0.0


def pixels_of(*key: object) -> np.ndarray:
    """A smooth picture that its key decides, the same in every process."""
    seed = int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=4).digest())
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return coarse.repeat(SIDE // 4, 0).repeat(SIDE // 4, 1)


def mask_of(name: str) -> np.ndarray:
    """A rectangle that the name decides."""
    mask = np.zeros((SIDE, SIDE), bool)
    start = 2 + len(name.encode()) % 3 + sum(name.encode()) % 4
    mask[start : start + 6, 3:11] = True
    return mask


def write_base(root: Path) -> Variant:
    """Four items to train on, and four to test, with masks, captions and a column."""
    truth: dict[str, Content] = {}
    lines = ["item,day"]
    for split, identities in SPLITS.items():
        names = [f"{identity:06d}_cam{camera}_0" for identity in identities for camera in (1, 2)]
        for name in names:
            images = {modality: pixels_of(name, modality) for modality in MODALITIES}
            for modality, pixels in images.items():
                save(root / split / modality / f"{name}.png", pixels)
            save(root / split / "mask" / f"{name}.png", mask_of(name).astype(np.uint8) * 255)
            lines.append(f"{name},mon")
            if split == "train":
                truth[name] = Content({**images}, mask_of(name), f"about {name}", "mon")
        entries = [{"item": f"{name}.png", "description": f"about {name}"} for name in names]
        (root / "text").mkdir(exist_ok=True)
        (root / "text" / f"{split}.json").write_text(json.dumps(entries))
    (root / "items.csv").write_text("\n".join(lines) + "\n")
    return Variant(root, truth)


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def differences(variant: Variant, items: Sequence[Item]) -> list[str]:
    """What was read otherwise than it is."""
    found = [f"{name} is no item" for name in variant.truth.keys() - {item.name for item in items}]
    found += [f"{name} is an item" for name in {item.name for item in items} - variant.truth.keys()]
    return found + [
        f"{part} of {item.name}"
        for item in items
        if item.name in variant.truth
        for part, read, true, allowed in _parts(variant, item, variant.truth[item.name])
        if true is not None and not _same(read, true, allowed)
    ]


def _parts(variant: Variant, item: Item, content: Content) -> list[tuple[str, Any, Any, float]]:
    sources = zip(MODALITIES, item.images, strict=True)
    images = [
        (
            modality,
            None if source is None else np.array(read_image(source, variant.ranges.get(modality))),
            content.images.get(modality),
            variant.tolerance,
        )
        for modality, source in sources
    ]
    mask = None if item.masks[0] is None else read_mask(item.masks[0])
    caption = " ".join(item.captions)
    return [
        *images,
        ("mask", mask, content.mask, 0.0),
        ("caption", caption, content.caption, 0.0),
        ("day", item.columns.get("day"), content.day, 0.0),
    ]


def _same(read: Any, true: Any, allowed: float) -> bool:
    if not isinstance(true, np.ndarray):
        return read == true
    if read is None or read.shape != true.shape:
        return False
    return bool(np.abs(read.astype(float) - true.astype(float)).mean() <= allowed)
