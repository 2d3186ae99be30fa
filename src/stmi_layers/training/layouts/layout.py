"""Record of a layout of folders: where files are, and how to read their names."""

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from stmi_layers.training.images import SUFFIXES
from stmi_layers.training.messages import shorten
from stmi_layers.training.record import Source

MODALITIES = ("RGB", "NI", "TI")
# Folders that systems leave behind, besides all names that start with . @ $ or __
SYSTEM = ("system volume information", "lost+found", "thumbs.db", "desktop.ini", "recycler", "#recycle", "#snapshot")
ARRAY = ".npy"
# Files that mark a folder of results inside a set: of a run, of an extraction, of an inspection.
RESULTS = (("checkpoint.pt",), ("extraction.json",), ("counts.csv", "contact_sheet.png"))
_SPLIT = re.compile("(train|training|test|testing|val|valid|validation|query|gallery)(_[0-9]+)?")


@dataclass(frozen=True)
class Layout:
    """One way in which a set lies on disk.

    Attributes:
        name: name of the benchmark; of the rule for a set of one's own.
        evidence: what a folder has to hold to be recognised.
        fits: function that tells whether a folder has this layout, given names of modalities in lower case.
        list_modalities: function that lists the modalities in the folder of a split.
        list_files: function that lists the files of one modality, or of a folder of masks, by name of the item.
        pattern: pattern of the item's name; groups that are not fields of `Item` become its columns.
        rule: the pattern in words.
        folders: folder of "train", of "query" and of "gallery"; empty where splits are named freely.
        required: folders that the benchmark must have; a missing one is reported as a problem.
        named: identities are the names of folders as written, not numbers.
        example: path of a file, for the message when nothing is recognised.
    """

    name: str
    evidence: str
    fits: Callable[[Path, Collection[str]], bool]
    list_modalities: Callable[[Path], list[str]]
    list_files: Callable[[Path, str], dict[str, Source]]
    pattern: re.Pattern[str]
    rule: str
    folders: dict[str, str] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    named: bool = False
    example: str = ""


def is_system(name: str) -> bool:
    """Tell whether an entry of a folder is hidden or was left by a system, and so is not part of the set."""
    return name.startswith((".", "@", "$", "__")) or name.lower() in SYSTEM


def is_split(name: str) -> bool:
    """Tell whether a folder has a usual name of a split."""
    return _SPLIT.fullmatch(name.lower()) is not None


def subfolders(folder: Path) -> list[str]:
    """List the names of the folders in a folder, without system folders; [] if the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if not is_system(entry.name) and _is_folder(entry))
    except OSError:
        return []


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def refuse_unreadable(folder: Path) -> None:
    """Refuse a folder that this user may not list or enter.

    Raises:
        ValueError: naming the folder and the reason.
    """
    try:
        os.scandir(folder).close()
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror or error}") from error


def is_mask_folder(name: str) -> bool:
    """Tell whether a folder holds masks rather than a modality."""
    return name == "mask" or name.startswith("mask_")


def is_result(folder: Path) -> bool:
    """Tell whether a folder holds results of this project's commands, and so is not part of the set.

    A folder with the name of a split is part of the set, whatever else it holds.
    """
    if is_split(folder.name):
        return False
    return any(all(os.path.isfile(folder / name) for name in names) for names in RESULTS)


def holds_images(folder: Path) -> bool:
    """Tell whether a folder has an entry named like an image, and holds no results."""
    try:
        with os.scandir(folder) as entries:
            return any(is_image(entry.name) for entry in entries) and not is_result(folder)
    except OSError:
        return False


def is_image(name: str) -> bool:
    """Tell whether a name has the suffix of an image that can be read."""
    return not is_system(name) and os.path.splitext(name)[1].lower() in SUFFIXES


def list_images(folder: Path, *, arrays: bool = False) -> dict[str, Path]:
    """List the images in a folder by stem; {} if the folder does not exist.

    Args:
        folder: the folder.
        arrays: list `.npy` files as well, which hold masks.
    """
    suffixes = (*SUFFIXES, ARRAY) if arrays else SUFFIXES
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror or error}") from error
    split = [os.path.splitext(name) for name in names if not is_system(name)]
    found = [(stem, suffix) for stem, suffix in split if suffix.lower() in suffixes]
    refuse_repetition((stem for stem, _ in found), folder)
    return {stem: folder / (stem + suffix) for stem, suffix in found}


def refuse_repetition(stems: Iterable[str], folder: Path) -> None:
    """Refuse several files of one stem."""
    twice = sorted(stem for stem, count in Counter(stems).items() if count > 1)
    if twice:
        raise ValueError(f"{folder} holds several files of one stem, keep one of each: {shorten(twice)}")


def in_order(modalities: Iterable[str]) -> list[str]:
    """Sort modalities: those of the benchmarks first, in their usual order."""
    there = list(dict.fromkeys(modalities))
    return [name for name in MODALITIES if name in there] + [name for name in there if name not in MODALITIES]
