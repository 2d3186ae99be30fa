"""What the layouts have in common: a record that says where files are and how to read their names."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stmi_layers.training.record import SUFFIXES, Source

MODALITIES = ("RGB", "NI", "TI")


@dataclass(frozen=True)
class Layout:
    """How one benchmark lies on disk.

    Attributes:
        name: of the benchmark; "folders" for a set of one's own.
        evidence: what a folder has to hold to be recognised, for the message when none is.
        fits: whether a folder holds it.
        list_modalities: the modalities that the folder of a split has.
        list_files: the files of one modality, or of a folder of masks, by stem.
        pattern: of the stem; groups that are no field of `Item` become its columns.
        rule: the pattern in words.
        folders: the folder of "train", of "query" and of "gallery"; empty where splits have names of their own.
    """

    name: str
    evidence: str
    fits: Callable[[Path], bool]
    list_modalities: Callable[[Path], list[str]]
    list_files: Callable[[Path, str], dict[str, Source]]
    pattern: re.Pattern[str]
    rule: str
    folders: dict[str, str] = field(default_factory=dict)


def subfolders(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def is_mask_folder(name: str) -> bool:
    return name == "mask" or name.startswith("mask_")


def list_images(folder: Path) -> dict[str, Path]:
    """The images in a folder by stem, none where there is no such folder; of a folder of masks, arrays too."""
    suffixes = (*SUFFIXES, ".npy") if is_mask_folder(folder.name) else SUFFIXES
    names = os.listdir(folder) if folder.is_dir() else ()
    split = [os.path.splitext(name) for name in names if not name.startswith(".")]
    found = [(stem, suffix) for stem, suffix in split if suffix.lower() in suffixes]
    refuse_repetition((stem for stem, _ in found), folder)
    return {stem: folder / (stem + suffix) for stem, suffix in found}


def refuse_repetition(stems: Iterable[str], folder: Path) -> None:
    twice = sorted(stem for stem, count in Counter(stems).items() if count > 1)
    if twice:
        raise ValueError(f"{folder} holds several files of one stem, keep one of each: {shorten(twice)}")


def shorten(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
