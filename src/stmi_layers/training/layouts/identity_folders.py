"""MSVR310 and WMVEID863: a folder per identity, and in it a folder per modality.

    ROOT/{bounding_box_train,query3,bounding_box_test}/0002/{vis,ni,th}/0002_s002_v0_000.jpg      scene 2, view 0
    ROOT/{train,query,test}/0483/{vis,ni,th}/0483_v7_n0_s999_004.jpg                     view 7, not at night (n0)

The modalities are called RGB, NI and TI as in the other layouts. Neither set has camera numbers.
Masks lie beside vis, ni and th, in a folder `mask` or `mask_<MODALITY>`.
"""

import os
import re
from collections.abc import Collection
from functools import partial
from itertools import islice
from pathlib import Path

from stmi_layers.training.layouts.layout import (
    MODALITIES,
    Layout,
    is_mask_folder,
    list_images,
    refuse_repetition,
    subfolders,
)
from stmi_layers.training.messages import shorten
from stmi_layers.training.record import Source

FOLDER_OF = {"RGB": "vis", "NI": "ni", "TI": "th"}
LOOKED_AT = 20


def has_identities(
    root: Path, modalities: Collection[str], *, splits: Collection[str], pattern: re.Pattern[str]
) -> bool:
    """Tell whether the folders exist, and one of their first files is named as in the benchmark."""
    folders = (root / split / identity for split in splits for identity in list_identities(root / split))
    stems = (stem for folder in folders for name in FOLDER_OF.values() for stem in list_images(folder / name))
    return any(pattern.fullmatch(stem) for stem in islice(stems, LOOKED_AT))


def list_identities(folder: Path) -> list[str]:
    """List the folders named by a number."""
    return [name for name in subfolders(folder) if re.fullmatch("[0-9]+", name)]


def list_modalities(folder: Path) -> list[str]:
    """List the modalities that some identity has."""
    identities = list_identities(folder)
    return [name for name in MODALITIES if any(os.path.isdir(folder / one / FOLDER_OF[name]) for one in identities)]


def list_files(folder: Path, modality: str) -> dict[str, Source]:
    """List the files of all identities by stem.

    Raises:
        ValueError: when the identity in the name of a file differs from the folder of the file.
    """
    found = [
        (identity, stem, path)
        for identity in list_identities(folder)
        for stem, path in list_images(
            folder / identity / FOLDER_OF.get(modality, modality), arrays=is_mask_folder(modality)
        ).items()
    ]
    strangers = [str(path.relative_to(folder)) for identity, stem, path in found if not stem.startswith(f"{identity}_")]
    if strangers:
        raise ValueError(
            f"{folder}: {len(strangers)} files lie in the folder of another identity than their name says: "
            f"{shorten(strangers)}; move or rename them"
        )
    refuse_repetition((stem for _, stem, _ in found), folder)
    return {stem: path for _, stem, path in found}


def _layout(name: str, folders: dict[str, str], pattern: str, rule: str, example: str) -> Layout:
    compiled = re.compile(pattern)
    return Layout(
        name=name,
        evidence=f"{{{','.join(folders.values())}}}/<identity>/{{{','.join(FOLDER_OF.values())}}}/",
        fits=partial(has_identities, splits=folders.values(), pattern=compiled),
        list_modalities=list_modalities,
        list_files=list_files,
        pattern=compiled,
        rule=rule,
        folders=folders,
        required=tuple(folders.values()),
        example=example,
    )


MSVR310 = _layout(
    "MSVR310",
    {"train": "bounding_box_train", "query": "query3", "gallery": "bounding_box_test"},
    r"(?P<identity>[0-9]{4})_s(?P<scene>[0-9]{3})_v(?P<view>[0-9]+)_[0-9]+",
    "<identity>_s<scene>_v<view>_<number>, as 0002_s002_v0_000",
    "bounding_box_train/0002/vis/0002_s002_v0_000.jpg",
)
WMVEID863 = _layout(
    "WMVEID863",
    {"train": "train", "query": "query", "gallery": "test"},
    r"(?P<identity>[0-9]{4})_v(?P<view>[0-9]+)_n(?P<night>[0-9])_s(?P<scene>[0-9]+)_[0-9]+",
    "<identity>_v<view>_n<night>_s<scene>_<number>, as 0483_v7_n0_s999_004",
    "train/0483/vis/0483_v7_n0_s999_004.jpg",
)
