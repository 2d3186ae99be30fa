"""RGBNT201, and any set with the same layout.

    ROOT/<split>/<MODALITY>/000028_cam1_0_02.jpg    identity 28, camera 1; the same stem in every modality
    ROOT/<split>/mask/000028_cam1_0_02.png          or .npy; mask_<MODALITY>/ where modalities have their own

A split is the folder of its name, or the only folder named <split>_<number>, such as train_171. Items of `test` are
both query and gallery; a set with the folders `query` and `gallery` instead of `test` keeps the two apart.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

from stmi_layers.training.layouts.layout import (
    Layout,
    holds_images,
    in_order,
    is_mask_folder,
    list_images,
    subfolders,
)
from stmi_layers.training.record import Source

PATTERN = re.compile(r"(?P<identity>-?[0-9]+)_cam(?P<camera>[0-9]+)(?:_.*)?")
RULE = "<identity>_cam<camera>[_...] with two numbers, as 000028_cam1_0_02"


def is_rgbnt201(root: Path, modalities: Collection[str]) -> bool:
    """Tell whether the folder of 171 identities for training is there."""
    return os.path.isdir(root / "train_171")


def is_folder_set(root: Path, modalities: Collection[str]) -> bool:
    """Tell whether images lie two folders below."""
    return any(list_modalities(root / name) for name in subfolders(root))


def list_modalities(folder: Path) -> list[str]:
    """List the folders of a split that hold images, without folders of masks."""
    return in_order(name for name in subfolders(folder) if not is_mask_folder(name) and holds_images(folder / name))


def list_files(folder: Path, modality: str) -> dict[str, Source]:
    """List the files of a modality by stem."""
    return {**list_images(folder / modality, arrays=is_mask_folder(modality))}


RGBNT201 = Layout(
    "RGBNT201",
    "train_171/{RGB,NI,TI}/",
    is_rgbnt201,
    list_modalities,
    list_files,
    PATTERN,
    RULE,
    required=("train_171", "test"),
    example="train_171/RGB/000028_cam1_0_02.jpg",
)
FOLDERS = Layout(
    "folders",
    "<split>/<MODALITY>/",
    is_folder_set,
    list_modalities,
    list_files,
    PATTERN,
    RULE,
    example="train/RGB/000028_cam1_0_02.jpg",
)
