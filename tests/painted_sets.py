"""Sets whose images show their own masks, so that a test can follow every pixel."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stmi_layers.training.record import Item
from stmi_layers.training.splits import read_split

SIZE = (24, 12)
NAMES = tuple(f"{identity:06d}_cam{camera}_0_{camera:02d}" for identity in (3, 28, 171) for camera in (1, 2))
MODALITIES = ("RGB", "NI", "TI")


def save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def blob(seed: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A random mask, rough enough that every shift and the flip change it."""
    return np.random.default_rng(seed).random(size) < 0.4


def write_painted(
    root: Path, split: str = "train_3", names: Sequence[str] = NAMES, *, per_modality: bool = False
) -> Path:
    """RGB in colour, the other modalities with one channel; every image is white on its mask and black elsewhere."""
    for number, name in enumerate(names):
        for offset, modality in enumerate(MODALITIES):
            mask = blob(10 * number + per_modality * offset).astype(np.uint8) * 255
            save(root / split / modality / f"{name}.png", np.stack([mask] * 3, axis=-1) if offset == 0 else mask)
            folder = f"mask_{modality}" if per_modality else "mask"
            # At twice the size, which nearest interpolation undoes exactly.
            save(root / split / folder / f"{name}.png", mask.repeat(2, 0).repeat(2, 1))
    return root


def write_captions(root: Path, entries: object) -> Path:
    (root / "text").mkdir(exist_ok=True)
    (root / "text" / "train.json").write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return root


def captions_of(names: Sequence[str]) -> list[dict[str, str]]:
    return [{"item": f"{name}.jpg", "description": f"about {name}"} for name in names]


def read(root: Path, modalities: Sequence[str] = MODALITIES, **options) -> list[Item]:
    """The items of the training split."""
    return read_split(root, "train", modalities, **{"captions": "optional", **options})
