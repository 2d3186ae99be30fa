"""What one multi-modal sample is, and how the files behind it are opened."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
PANEL_WIDTH = 256
Role = Literal["both", "query", "gallery"]


class Panel(NamedTuple):
    """One of `count` images that lie side by side in one file, counted from the left, from 0 on."""

    path: Path
    index: int
    count: int


Source = Path | Panel


@dataclass(frozen=True)
class Item:
    """One multi-modal sample.

    Attributes:
        name: the stem its files share.
        identity: who or what it shows.
        camera: what took it; the viewpoint where a set numbers these and no cameras (MSVR310, WMVEID863).
        images: one file, or panel of a file, per modality, None where it is missing.
        masks: one file per modality, repeated where the mask is common, None where it is missing.
        caption: the description, or None.
        scene: the place or session, None where the set has none.
        view: the viewpoint, None where the set has none.
        role: what it does in a test split: "query", "gallery" or "both".
        layout: the name of the layout it was read from.
        columns: what else is known about it by name: from `items.csv`, or from its file name.
    """

    name: str
    identity: int
    camera: int
    images: tuple[Source | None, ...]
    masks: tuple[Path | None, ...]
    caption: str | None
    scene: int | None = None
    view: int | None = None
    role: Role = "both"
    layout: str = "folders"
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)


def path_of(source: Source) -> Path:
    return source.path if isinstance(source, Panel) else source


def read_image(source: Source) -> Image.Image:
    """The image as it is stored; of a panel, its part of the file.

    Raises:
        OSError: when the file cannot be decoded.
    """
    with Image.open(path_of(source)) as image:
        image.load()
    if not isinstance(source, Panel):
        return image
    width = image.width // source.count
    return image.crop((source.index * width, 0, (source.index + 1) * width, image.height))


def read_mask(path: Path) -> NDArray[np.bool_]:
    """A mask at the size it is stored in, True = foreground.

    An image is foreground above 127. An array (`.npy`) is either within 0 ... 1 and foreground from 0.5 on, or
    within 0 ... 255 and foreground above 127.

    Raises:
        OSError: when the file cannot be decoded.
        ValueError: when it is no mask.
    """
    if path.suffix != ".npy":
        with Image.open(path) as image:
            return np.array(image.convert("L")) > 127
    array = np.load(path, allow_pickle=False)
    if array.ndim != 2 or array.dtype.kind not in "buif" or array.size == 0:
        raise ValueError(f"must be an array of numbers (height, width); it has shape {array.shape}, {array.dtype}")
    if array.dtype == np.bool_:
        return array
    least, most = float(array.min()), float(array.max())
    if not 0 <= least <= most <= 255:
        raise ValueError(f"must lie within 0 ... 1 or 0 ... 255; it has values from {least:g} to {most:g}")
    return array >= 0.5 if most <= 1 else array > 127


def find_defect(source: Source, *, is_mask: bool = False) -> str | None:
    """Why a file cannot be used, None when it can."""
    path = path_of(source)
    try:
        if path.suffix == ".npy":
            return None if read_mask(path).any() else _dim_array(path)
        with Image.open(path) as image:
            image.load()
            largest = int(np.array(image.convert("L")).max()) if is_mask else 255
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        return f"cannot be decoded ({error})"
    if image.mode.startswith(("I", "F")):
        return f"has more than 8 bits (mode {image.mode}); convert it with the range that shall be black to white"
    if isinstance(source, Panel) and image.width != source.count * PANEL_WIDTH:
        return f"is {image.width} pixels wide; {source.count} panels of {PANEL_WIDTH} are {source.count * PANEL_WIDTH}"
    if 0 < largest < 128:
        return f"is a mask whose largest value is {largest}; foreground must be 255"
    return None


def _dim_array(path: Path) -> str | None:
    """What is wrong with an array without foreground: nothing when it is all 0."""
    largest = float(np.load(path, allow_pickle=False).max())
    return f"is a mask whose largest value is {largest:g}; foreground must be 1 or 255" if largest > 0 else None
