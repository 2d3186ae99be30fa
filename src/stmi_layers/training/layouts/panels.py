"""RGBNT100 and RGBN300: one file holds all modalities of an item side by side.

    ROOT[/rgbir]/{bounding_box_train,query,bounding_box_test}/0548_c0002_000.jpg    identity 548, camera 2

RGBNT100 has three panels of 256 x 128 pixels, RGB | NI | TI; RGBN300 has the first two. The width of the first
file that can be opened tells them apart. Masks lie in a folder `mask` (or `mask_<MODALITY>`) inside that of the files.
"""

import re
from collections.abc import Collection
from functools import partial
from pathlib import Path

from stmi_layers.training.images import PANEL_WIDTH, opened
from stmi_layers.training.layouts.layout import MODALITIES, Layout, is_mask_folder, list_images
from stmi_layers.training.record import Panel, Source

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
PATTERN = re.compile(r"(?P<identity>[0-9]{4})_c(?P<camera>[0-9]{4})_[0-9]+")
LOOKED_AT = 50


def count_panels(root: Path) -> int:
    """Count the panels in the first file of a legal width; 0 if there is no file.

    Raises:
        ValueError: when none of the first 50 files per split has the width of two or three panels.
    """
    files = [path for name in FOLDERS.values() for _, path in sorted(list_images(root / name).items())[:LOOKED_AT]]
    strange: dict[Path, int] = {}
    for path in files:
        width = _width(path)
        if width in (2 * PANEL_WIDTH, 3 * PANEL_WIDTH):
            return width // PANEL_WIDTH
        if width is not None:
            strange[path] = width
    if not files:
        return 0
    rule = f"must be three (RGBNT100) or two (RGBN300) panels of {PANEL_WIDTH} pixels, side by side"
    found = f"it is {next(iter(strange.values()))} pixels wide" if strange else "it cannot be decoded"
    raise ValueError(f"{next(iter(strange), files[0])} {rule}; {found}, and no other file that was tried fits")


def _width(path: Path) -> int | None:
    """Return the width of an image file; None if the file cannot be opened."""
    try:
        with opened(path) as image:
            return image.width
    except Exception:  # whatever a damaged file does to a decoder; the file is named when all files are checked
        return None


def has_panels(root: Path, modalities: Collection[str], *, count: int) -> bool:
    """Tell whether the files of the benchmark have this number of panels."""
    return count_panels(root) == count


def list_modalities(folder: Path, count: int) -> list[str]:
    """List the modalities of `count` panels."""
    return list(MODALITIES[:count])


def list_files(folder: Path, modality: str, count: int) -> dict[str, Source]:
    """List the panels of a modality, or masks, by stem."""
    if is_mask_folder(modality):
        return {**list_images(folder / modality, arrays=True)}
    index = MODALITIES.index(modality)
    return {stem: Panel(path, index, count) for stem, path in list_images(folder).items()}


def _layout(name: str, count: int) -> Layout:
    return Layout(
        name=name,
        evidence=f"[rgbir/]{{{','.join(FOLDERS.values())}}}/ with images {count * PANEL_WIDTH} pixels wide",
        fits=partial(has_panels, count=count),
        list_modalities=partial(list_modalities, count=count),
        list_files=partial(list_files, count=count),
        pattern=PATTERN,
        rule="<identity>_c<camera>_<number>, as 0548_c0002_000",
        folders=FOLDERS,
        required=tuple(FOLDERS.values()),
        example="rgbir/bounding_box_train/0548_c0002_000.jpg",
    )


RGBNT100, RGBN300 = _layout("RGBNT100", 3), _layout("RGBN300", 2)
