"""RGBNT100 and RGBN300: one file holds all modalities of an item side by side.

    ROOT[/rgbir]/{bounding_box_train,query,bounding_box_test}/0548_c0002_000.jpg    identity 548, camera 2

RGBNT100 has three panels of 256 x 128 pixels, RGB | NI | TI, RGBN300 the first two of them. One file is opened to
count them. Masks lie in a folder `mask` (or `mask_<MODALITY>`) inside that of the files.
"""

import re
from functools import partial
from pathlib import Path

from PIL import Image

from stmi_layers.training.layouts.layout import MODALITIES, Layout, is_mask_folder, list_images
from stmi_layers.training.record import PANEL_WIDTH, Panel, Source

FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}
PATTERN = re.compile(r"(?P<identity>[0-9]{4})_c(?P<camera>[0-9]{4})_[0-9]+")


def count_panels(root: Path) -> int:
    """Panels in the first file there is, 0 where there is none.

    Raises:
        ValueError: when its width is neither that of two panels nor of three.
    """
    first = next((files[min(files)] for name in FOLDERS.values() if (files := list_images(root / name))), None)
    if first is None:
        return 0
    with Image.open(first) as image:
        width = image.width
    if width not in (2 * PANEL_WIDTH, 3 * PANEL_WIDTH):
        raise ValueError(
            f"{first} must be three (RGBNT100) or two (RGBN300) panels of {PANEL_WIDTH} pixels, side by side; "
            f"it is {width} pixels wide"
        )
    return width // PANEL_WIDTH


def has_panels(root: Path, count: int) -> bool:
    return count_panels(root) == count


def list_modalities(folder: Path, count: int) -> list[str]:
    return list(MODALITIES[:count])


def list_files(folder: Path, modality: str, count: int) -> dict[str, Source]:
    if is_mask_folder(modality):
        return {**list_images(folder / modality)}
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
    )


RGBNT100, RGBN300 = _layout("RGBNT100", 3), _layout("RGBN300", 2)
