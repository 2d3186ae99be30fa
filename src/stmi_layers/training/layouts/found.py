"""Record of a recognised set: its rule, its splits, and how to list their items."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from stmi_layers.training.layouts.items import list_folder
from stmi_layers.training.layouts.layout import Layout, is_result, subfolders
from stmi_layers.training.record import Item, Role


@dataclass(frozen=True)
class FoundSet:
    """A set on disk.

    Attributes:
        layout: name of its layout.
        rule: what was recognised, in words.
        base: folder that holds the splits; of a manifest, its folder.
        splits: names of the splits; `test` stands for query and gallery.
        missing: folders that the benchmark requires and this set lacks.
        list_modalities: function that lists the modalities of a split.
        list_items: function that lists the items of a split with some modalities, None where an image is missing.
            Only a manifest adds captions.
    """

    layout: str
    rule: str
    base: Path
    splits: tuple[str, ...]
    missing: tuple[str, ...]
    list_modalities: Callable[[str], list[str]]
    list_items: Callable[[str, Sequence[str]], list[Item]]


def found_folders(layout: Layout, base: Path) -> FoundSet:
    """Return the record of a set whose splits are folders."""
    return FoundSet(
        layout=layout.name,
        rule=f"{layout.evidence} in {base}; files are named {layout.rule}",
        base=base,
        splits=tuple(list_splits(layout, base)),
        missing=tuple(name for name in layout.required if not os.path.isdir(base / name)),
        list_modalities=partial(_list_modalities, layout, base),
        list_items=partial(_list_items, layout, base),
    )


def _list_modalities(layout: Layout, base: Path, split: str) -> list[str]:
    there = [name for _, folder in split_folders(layout, base, split) for name in layout.list_modalities(folder)]
    return list(dict.fromkeys(there))


def _list_items(layout: Layout, base: Path, split: str, modalities: Sequence[str]) -> list[Item]:
    folders = split_folders(layout, base, split)
    return [item for role, folder in folders for item in list_folder(layout, folder, role, modalities)]


def list_splits(layout: Layout, base: Path) -> list[str]:
    """List the splits of a set; `test` stands for query and gallery."""
    if layout.folders:
        there = [role for role, folder in layout.folders.items() if os.path.isdir(base / folder)]
    else:
        there = _of_ones_own(layout, base)
    return with_test(there)


def with_test(splits: Sequence[str]) -> list[str]:
    """Return the splits with `test` in the place of query and gallery."""
    if {"query", "gallery"}.issubset(splits) and "test" not in splits:
        return [name for name in splits if name not in ("query", "gallery")] + ["test"]
    return list(splits)


def split_folders(layout: Layout, base: Path, split: str) -> list[tuple[Role, Path]]:
    """List the folders of a split, each with the role of its items.

    Raises:
        FileNotFoundError: when the set has no such split, or a folder of it is missing.
        ValueError: when several folders could be meant, or the benchmark knows no such split.
    """
    if layout.folders:
        return _of_benchmark(layout, base, split)
    there = _of_ones_own(layout, base)
    if split in ("query", "gallery") and split in there:
        return [(split, base / split)]
    if split in subfolders(base):
        return [("both", base / split)]
    if split == "test" and {"query", "gallery"}.issubset(there):
        return [("query", base / "query"), ("gallery", base / "gallery")]
    numbered = [name for name in there if re.fullmatch(re.escape(split) + "_[0-9]+", name)]
    if len(numbered) > 1:
        raise ValueError(f"split {split!r} is ambiguous in {base}: give one of {', '.join(numbered)}")
    if not numbered:
        raise FileNotFoundError(f"{base} has no split {split!r}; it has {', '.join(there) or 'none'}")
    return [("both", base / numbered[0])]


def _of_benchmark(layout: Layout, base: Path, split: str) -> list[tuple[Role, Path]]:
    roles: dict[str, list[Role]] = {
        "train": ["both"],
        "test": ["query", "gallery"],
        "query": ["query"],
        "gallery": ["gallery"],
    }
    if split not in roles:
        raise ValueError(f"split must be one of {', '.join(roles)} in {layout.name}; received {split!r}")
    folders: list[tuple[Role, Path]] = [
        (role, base / layout.folders["train" if role == "both" else role]) for role in roles[split]
    ]
    missing = [folder.name for _, folder in folders if not os.path.isdir(folder)]
    if missing:
        raise FileNotFoundError(f"split {split!r} of {layout.name} lacks its folder {' and '.join(missing)} in {base}")
    return folders


def _of_ones_own(layout: Layout, base: Path) -> list[str]:
    """List the folders in which the layout finds a modality."""
    return [name for name in subfolders(base) if not is_result(base / name) and layout.list_modalities(base / name)]
