"""RGBNT201, and any set that is laid out like it.

    ROOT/<split>/<MODALITY>/000028_cam1_0_02.jpg    identity 28, camera 1; the same stem in every modality
    ROOT/<split>/mask/000028_cam1_0_02.png          or .npy; mask_<MODALITY>/ where modalities have their own

A split is the folder of its name, or the only one named <split>_<number>, as train_171. `test` is query and gallery at
once; a set that has the folders `query` and `gallery` in its place keeps them apart.
"""

import re
from pathlib import Path

from stmi_layers.training.layouts.layout import MODALITIES, Layout, is_mask_folder, list_images, subfolders
from stmi_layers.training.record import Source

PATTERN = re.compile(r"(?P<identity>[0-9]+)_cam(?P<camera>[0-9]+)(?:_.*)?")
RULE = "<identity>_cam<camera>[_...] with two numbers, as 000028_cam1_0_02"


def is_rgbnt201(root: Path) -> bool:
    return (root / "train_171").is_dir()


def is_folder_set(root: Path) -> bool:
    return any(subfolders(root / name) for name in subfolders(root))


def list_modalities(folder: Path) -> list[str]:
    """Those of the benchmarks first, in their order."""
    there = [name for name in subfolders(folder) if not is_mask_folder(name)]
    return [name for name in MODALITIES if name in there] + [name for name in there if name not in MODALITIES]


def list_files(folder: Path, modality: str) -> dict[str, Source]:
    return {**list_images(folder / modality)}


RGBNT201 = Layout("RGBNT201", "train_171/{RGB,NI,TI}/", is_rgbnt201, list_modalities, list_files, PATTERN, RULE)
FOLDERS = Layout("folders", "<split>/<MODALITY>/", is_folder_set, list_modalities, list_files, PATTERN, RULE)
