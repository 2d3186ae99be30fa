"""A set on disk as a list of items, and every way in which its folders can be wrong.

`layouts/` says where the files of each benchmark are, `descriptions.py` where captions and further columns are.
"""

import warnings
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from stmi_layers.training.annotations import read_captions, read_columns
from stmi_layers.training.layouts import Layout, find_layout, split_folders
from stmi_layers.training.layouts import shorten as shorten
from stmi_layers.training.record import SUFFIXES, Role, Source, find_defect, path_of
from stmi_layers.training.record import Item as Item

MissingModality = Literal["error", "absent", "skip"]
MissingCaption = Literal["error", "none", "ignore"]


def read_split(
    root: Path | str,
    split: str,
    modalities: Sequence[str],
    *,
    missing_modality: MissingModality = "error",
    missing_caption: MissingCaption = "error",
    damaged: Literal["error", "skip"] = "error",
) -> list[Item]:
    """List the items of a split. Every image and mask is decoded once, so that none fails in the middle of a training.

    Args:
        root: the set, in any layout that `layouts.recognise` knows.
        split: `train`, `test` or any other split it has; `test` is query and gallery together.
        modalities: names of those to read, in the order of `Item.images`: RGB, NI and TI in the benchmarks.
        missing_modality: what to do when an image is missing in some modality; "absent" puts None in its place,
            "skip" leaves the item out and warns.
        missing_caption: what to do when an item has no caption, or an empty one; "none" puts None in its place,
            "ignore" reads no captions at all.
        damaged: what to do when a file cannot be decoded; "skip" leaves its item out and warns.

    Returns:
        At least one item, queries first, then sorted by name: the order does not depend on the file system.

    Raises:
        FileNotFoundError: when the root, the split, a modality, its images or the captions are not there.
        ValueError: when names, captions or files break the layout, or an option is unknown.
    """
    check_option("missing_caption", missing_caption, ("error", "none", "ignore"))
    check_option("damaged", damaged, ("error", "skip"))
    items = list_items(root, split, modalities, missing_modality=missing_modality, missing_caption=missing_caption)
    return _without_damaged(items, damaged, Path(root))


def list_items(
    root: Path | str,
    split: str,
    modalities: Sequence[str],
    *,
    missing_modality: MissingModality = "error",
    missing_caption: MissingCaption = "none",
) -> list[Item]:
    """The items of a split, as `read_split` lists them before it decodes their files."""
    check_option("missing_modality", missing_modality, ("error", "absent", "skip"))
    items = find_items(root, split, modalities)
    names = sorted({item.name for item in items})
    filed = [split, *dict.fromkeys(item.role for item in items if item.role not in ("both", split))]
    captions: dict[str, str] = {}
    if missing_caption != "ignore":
        captions = read_captions(Path(root), filed, modalities, names, required=missing_caption == "error")
    columns = read_columns(Path(root), names)
    items = [
        replace(item, caption=captions.get(item.name), columns={**item.columns, **columns.get(item.name, {})})
        for item in items
    ]
    return items if missing_modality == "absent" else _complete(items, modalities, missing_modality, f"{root}: {split}")


def find_items(root: Path | str, split: str, modalities: Sequence[str]) -> list[Item]:
    """The items of a split as its folders tell them: without captions, None where an image is missing."""
    if isinstance(modalities, str) or not modalities or len(set(modalities)) < len(modalities):
        raise ValueError(
            f"modalities must be a sequence of different folder names; received {modalities!r} (--modalities)"
        )
    layout, base = find_layout(Path(root))
    folders = split_folders(layout, base, split)
    return [item for role, folder in folders for item in _list_folder(layout, folder, role, modalities)]


def check_option(argument: str, value: str, options: Collection[str]) -> None:
    if value not in options:
        flag = "--" + argument.replace("_", "-")
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, options))}; received {value!r} ({flag})")


def _list_folder(layout: Layout, folder: Path, role: Role, modalities: Sequence[str]) -> list[Item]:
    """The items of one folder by name, without captions."""
    images = [_images(layout, folder, modality) for modality in modalities]
    names = sorted(set().union(*images))
    matches = {name: layout.pattern.fullmatch(name) for name in names}
    strange = [name for name, match in matches.items() if match is None]
    if strange:
        raise ValueError(
            f"{folder}: names must be {layout.rule}; {len(strange)} are not: {shorten(strange)} (read as {layout.name})"
        )
    shared = layout.list_files(folder, "mask")
    masks = [shared | layout.list_files(folder, f"mask_{modality}") for modality in modalities]
    return [
        Item(
            name,
            images=tuple(files.get(name) for files in images),
            masks=tuple(path_of(files[name]) if name in files else None for files in masks),
            caption=None,
            role=role,
            layout=layout.name,
            **_read_name(match.groupdict()),
        )
        for name, match in matches.items()
        if match is not None
    ]


def _read_name(groups: dict[str, str]) -> dict[str, Any]:
    """The fields of an item that its name tells, the rest of its groups as columns."""
    numbers = {name: int(groups.pop(name)) for name in ("identity", "camera", "scene", "view") if name in groups}
    return {"camera": numbers.get("view"), **numbers, "columns": groups}


def _images(layout: Layout, folder: Path, modality: str) -> dict[str, Source]:
    there = layout.list_modalities(folder)
    if modality not in there:
        raise FileNotFoundError(
            f"{folder} has no modality folder {modality!r}; it has {', '.join(there) or 'none'} (--modalities)"
        )
    files = layout.list_files(folder, modality)
    if not files:
        raise FileNotFoundError(f"{folder}: {modality} holds no images ({' '.join(SUFFIXES)})")
    return files


def _complete(items: list[Item], modalities: Sequence[str], policy: str, where: str) -> list[Item]:
    """The items that have all modalities, when there are others an error or a warning."""
    missing = [
        f"{modality}/{item.name}"
        for position, modality in enumerate(modalities)
        for item in items
        if item.images[position] is None
    ]
    if not missing:
        return items
    message = f"{where}: {len(missing)} images are missing though another modality has them: {shorten(missing)}"
    if policy == "error":
        raise ValueError(
            f"{message}; add them, or pass missing_modality='absent' to do without them, or 'skip' to leave their "
            "items out (--missing-modality)"
        )
    kept = [item for item in items if None not in item.images]
    if not kept:
        raise ValueError(f"{message}; no item has all of {', '.join(modalities)}")
    warnings.warn(f"{message}; {len(items) - len(kept)} of {len(items)} items are left out", stacklevel=4)
    return kept


def _without_damaged(items: list[Item], damaged: str, root: Path) -> list[Item]:
    masks = {file for item in items for file in item.masks if file}
    # One panel stands for all of its file.
    images = {path_of(source): source for item in items for source in item.images if source}
    progress = tqdm(
        sorted(masks.union(images)), desc=f"checking {root}", unit="file", leave=False, disable=len(images) < 1000
    )
    checks = ((file, find_defect(images.get(file, file), is_mask=file in masks)) for file in progress)
    defects = {file: defect for file, defect in checks if defect}
    if not defects:
        return items
    found = "\n  ".join(f"{file.relative_to(root)}: {defect}" for file, defect in defects.items())
    message = f"{root}: {len(defects)} of {len(masks) + len(images)} files cannot be used"
    if damaged == "error":
        advice = "repair them, or pass damaged='skip' (--damaged skip) to leave their items out"
        raise ValueError(f"{message}; {advice}:\n  {found}")
    kept = [item for item in items if defects.keys().isdisjoint(files_of(item))]
    if not kept:
        raise ValueError(f"{message}, which leaves no item:\n  {found}")
    warnings.warn(f"{message}, {len(items) - len(kept)} items are left out:\n  {found}", stacklevel=3)
    return kept


def files_of(item: Item) -> set[Path]:
    return {path_of(source) for source in (*item.images, *item.masks) if source}
