"""Custom sets with a folder per identity, whose name is the identity.

    ROOT/<split>/<MODALITY>/<identity>/<file>     modality first: train/RGB/red-truck/0001.jpg
    ROOT/<split>/<identity>/<MODALITY>/<file>     identity first: train/red-truck/RGB/0001.jpg

The same stem in every modality of an identity is one item, called <identity>/<stem>. A stem with a part cam<number>,
such as 0001_cam2, gives the camera. Masks lie in `mask` or `mask_<MODALITY>`, in the place of a modality. The names of
the folders decide between the two rules: one must be the name of a split, and some must be names of modalities.
"""

import os
import re
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from stmi_layers.training.layouts.layout import (
    Layout,
    holds_images,
    in_order,
    is_mask_folder,
    is_result,
    is_split,
    list_images,
    subfolders,
)
from stmi_layers.training.record import Source

# Usual names of modalities in lower case.
KNOWN = frozenset(
    (
        *(
            "rgb",
            "vis",
            "visible",
            "colour",
            "color",
            "gray",
            "grey",
            "pan",
            "uv",
            "depth",
            "event",
            "events",
            "sketch",
        ),
        *("ni", "nir", "ti", "tir", "th", "thermal", "ir", "infrared", "lwir", "mwir", "swir"),
    )
)
PATTERN = re.compile(r"(?P<identity>[^/]+)/(?:(?:.*_)?cam(?P<camera>[0-9]+)(?:_.*)?|.*)")
RULE = "<identity>/<file>"
Below = Callable[[Path, str], list[Path]]


def _modality_first(folder: Path, modality: str) -> list[Path]:
    return [folder / modality / identity for identity in subfolders(folder / modality)]


def _identity_first(folder: Path, modality: str) -> list[Path]:
    return [
        folder / identity / modality for identity in subfolders(folder) if os.path.isdir(folder / identity / modality)
    ]


def list_modality_first(folder: Path) -> list[str]:
    """List the folders of a split that hold folders of images, without folders of masks."""
    names = [name for name in subfolders(folder) if not is_mask_folder(name) and not is_result(folder / name)]
    return in_order(name for name in names if any(map(holds_images, _modality_first(folder, name))))


def list_identity_first(folder: Path) -> list[str]:
    """List the folders with images in the folders of a split, without folders of masks."""
    below = {
        name: None
        for identity in subfolders(folder)
        if not is_result(folder / identity)
        for name in subfolders(folder / identity)
        if not is_mask_folder(name) and holds_images(folder / identity / name)
    }
    return in_order(sorted(below))


def list_files(folder: Path, modality: str, *, below: Below, identity_at: int) -> dict[str, Source]:
    """List the files of a modality by identity and stem."""
    arrays = is_mask_folder(modality)
    return {
        f"{place.parts[identity_at]}/{stem}": path
        for place in below(folder, modality)
        for stem, path in list_images(place, arrays=arrays).items()
    }


def _fits(root: Path, modalities: Collection[str], *, list_modalities: Callable[[Path], list[str]]) -> bool:
    """Tell whether a folder is named as a split, and a folder in the place of a modality is named as a modality."""
    known = KNOWN.union(modalities)
    # Otherwise <archive>/<split>/<MODALITY> could be taken for <split>/<identity>/<MODALITY>.
    splits = [name for name in subfolders(root) if is_split(name)]
    return any(name.lower() in known for split in splits for name in list_modalities(root / split))


def _layout(name: str, evidence: str, list_modalities, below: Below, identity_at: int, example: str) -> Layout:
    return Layout(
        name=name,
        evidence=evidence,
        fits=partial(_fits, list_modalities=list_modalities),
        list_modalities=list_modalities,
        list_files=partial(list_files, below=below, identity_at=identity_at),
        pattern=PATTERN,
        rule=RULE,
        named=True,
        example=example,
    )


MODALITY_FIRST = _layout(
    "modality/identity",
    "<split>/<MODALITY>/<identity>/",
    list_modality_first,
    _modality_first,
    -1,
    "train/RGB/red-truck/0001.jpg",
)
IDENTITY_FIRST = _layout(
    "identity/modality",
    "<split>/<identity>/<MODALITY>/",
    list_identity_first,
    _identity_first,
    -2,
    "train/red-truck/RGB/0001.jpg",
)
