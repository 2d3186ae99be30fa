"""A split on disk as a list of items whose files are checked."""

import gc
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args

from stmi_layers._checks import check_choice
from stmi_layers.training.annotations import read_captions, read_columns, require_captions
from stmi_layers.training.checks import check_files
from stmi_layers.training.layouts import FoundSet, find_set
from stmi_layers.training.layouts.layout import holds_images, is_mask_folder, subfolders
from stmi_layers.training.layouts.leftovers import describe_counts, passed_over
from stmi_layers.training.messages import printable, shorten
from stmi_layers.training.record import Item, files_of, path_of
from stmi_layers.training.settings import Captions, Damaged, MissingModality, Range, check_modalities, check_ranges

# Number of defects that a message names; `inspect` names all of them.
LISTED = 50


def read_split(
    root: Path | str,
    split: str,
    modalities: Sequence[str],
    *,
    captions: Captions = "off",
    missing_modality: MissingModality = "error",
    damaged: Damaged = "error",
    ranges: Mapping[str, Range] | None = None,
    memory: Path | None = None,
) -> list[Item]:
    """List the items of a split. Every image and mask is decoded once, so that none fails during training.

    Args:
        root: the set, in any layout that `layouts.recognise` knows, or its manifest.
        split: `train`, `test` or another split of the set; `test` is query and gallery together.
        modalities: names of the modalities to read, in the order of `Item.images`; RGB, NI and TI in the benchmarks.
        captions: not read, required for every item, or optional.
        missing_modality: policy for an image that is missing in some modality; "absent" puts None in its place,
            "skip" leaves the item out and warns.
        damaged: policy for a file that cannot be used; "skip" leaves its item out and warns.
        ranges: counts that become black and white in deep images, by modality.
        memory: folder in which checked files are remembered; by default in the user's cache folder.

    Returns:
        At least one item, queries first, then sorted by name. The order does not depend on the file system.

    Raises:
        FileNotFoundError: when the root, the split, a modality, its images or the captions are not there.
        ValueError: when names, captions or files break the layout, or an option is unknown.
    """
    check_choice("damaged", damaged, get_args(Damaged))
    check_ranges(ranges or {})
    with _collector_paused():
        items = list_items(root, split, modalities, captions=captions, missing_modality=missing_modality)
        warn_of_passed_over(items, Path(root))
        bounds = ranges_by_file(items, modalities, ranges or {})
        return _without_damaged(items, damaged, Path(root), bounds, memory)


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause garbage collection, which would take half of the time: many records are made, none of them in a cycle."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def list_items(
    root: Path | str,
    split: str,
    modalities: Sequence[str],
    *,
    captions: Captions = "off",
    missing_modality: MissingModality = "error",
) -> list[Item]:
    """List the items of a split as `read_split` does, without decoding their files."""
    check_modalities(modalities)
    check_choice("captions", captions, get_args(Captions))
    check_choice("missing_modality", missing_modality, get_args(MissingModality))
    found = find_set(Path(root), modalities)
    items = found.list_items(split, modalities)
    if not items:
        raise FileNotFoundError(f"{root}: the split {split!r} holds no items")
    items = _annotate(items, home_of(Path(root), found), split, modalities, captions=captions)
    return items if missing_modality == "absent" else _complete(items, modalities, missing_modality, f"{root}: {split}")


def home_of(root: Path, found: FoundSet) -> Path:
    """Return the folder that holds `text/` and `items.csv`: the root, otherwise the folder of the splits."""
    places = (root, found.base, found.base.parent)
    return next(
        (place for place in places if os.path.lexists(place / "text") or os.path.lexists(place / "items.csv")), root
    )


def _annotate(
    items: Sequence[Item], root: Path, split: str, modalities: Sequence[str], *, captions: Captions
) -> list[Item]:
    """Add captions and further columns; items of a manifest have both already."""
    required = captions == "required"
    if items[0].layout == "manifest":
        if captions == "off":
            return [replace(item, captions=()) for item in items]
        there = {item.name for item in items if item.captions}
        require_captions(str(root), there, [item.name for item in items], required=required)
        return list(items)
    names = sorted({item.name for item in items})
    filed = [split, *dict.fromkeys(item.role for item in items if item.role not in ("both", split))]
    texts: dict[str, tuple[str, ...]] = {}
    if captions != "off":
        texts = read_captions(root, filed, modalities, names, required=required)
    columns = read_columns(root, names)
    return [
        replace(item, captions=texts.get(item.name, ()), columns={**item.columns, **columns.get(item.name, {})})
        for item in items
    ]


def warn_of_passed_over(items: Sequence[Item], root: Path) -> None:
    """Warn about files beside the items that are not readable images, and about images in deeper folders."""
    files = (path_of(one) for item in items for one in (*item.images, *item.masks) if one)
    folders = set(map(Path, {os.path.dirname(file) for file in files}))
    found = passed_over(folders)
    if found:
        named = "; ".join(f"{shown(folder, root)}: {describe_counts(counts)}" for folder, counts in found.items())
        warnings.warn(f"{root}: files are passed over that are not read as images: {named[:500]}", stacklevel=3)
    below = [folder / name for folder in sorted(folders) for name in subfolders(folder) if not is_mask_folder(name)]
    if deep := [shown(place, root) for place in below if place not in folders and holds_images(place)]:
        warnings.warn(f"{root}: images in {len(deep)} folders are passed over: {shorten(deep)}", stacklevel=3)


def ranges_by_file(items: Sequence[Item], modalities: Sequence[str], ranges: Mapping[str, Range]) -> dict[Path, Range]:
    """Return the ranges of counts by file, where the modality has a range."""
    return {
        path_of(source): ranges[name]
        for item in items
        for name, source in zip(modalities, item.images, strict=True)
        if source and name in ranges
    }


def _complete(items: list[Item], modalities: Sequence[str], policy: str, where: str) -> list[Item]:
    """Keep the items that have all modalities; others are an error or a warning."""
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
            "items out"
        )
    kept = [item for item in items if None not in item.images]
    if not kept:
        raise ValueError(f"{message}; no item has all of {', '.join(modalities)}")
    warnings.warn(f"{message}; {len(items) - len(kept)} of {len(items)} items are left out", stacklevel=4)
    return kept


def _without_damaged(
    items: list[Item], damaged: str, root: Path, bounds: Mapping[Path, Range], memory: Path | None
) -> list[Item]:
    masks = {file for item in items for file in item.masks if file}
    # One panel stands for its whole file.
    images = {path_of(source): source for item in items for source in item.images if source}
    looks = check_files(images.values(), masks, root=root, ranges=bounds, memory=memory)
    defects = dict(sorted((file, look.defect) for file, look in looks.items() if look.defect))
    clipped = [file.name for file, look in looks.items() if "clipped" in look.notes]
    if clipped:
        warnings.warn(
            f"{root}: {len(clipped)} images have more than 1 % of their counts beyond the range of their modality, "
            f"which become black or white: {shorten(clipped)}",
            stacklevel=3,
        )
    if not defects:
        return items
    lines = [f"{shown(file, root)}: {printable(defect)}" for file, defect in list(defects.items())[:LISTED]]
    more = [f"and {len(defects) - LISTED} more"] if len(defects) > LISTED else []
    found = "\n  ".join([*lines, *more])
    message = f"{root}: {len(defects)} of {len(looks)} files cannot be used"
    if damaged == "error":
        raise ValueError(f"{message}; repair them, or pass damaged='skip' to leave their items out:\n  {found}")
    kept = [item for item in items if defects.keys().isdisjoint(files_of(item))]
    if not kept:
        raise ValueError(f"{message}, which leaves no item:\n  {found}")
    warnings.warn(f"{message}, {len(items) - len(kept)} items are left out:\n  {found}", stacklevel=3)
    return kept


def refuse_missing_masks(items: Sequence[Item]) -> None:
    """Refuse items with an image that has no mask."""
    missing = [
        item.name
        for item in items
        if any(image is not None and mask is None for image, mask in zip(item.images, item.masks, strict=True))
    ]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(items)} items lack a mask in mask/ or mask_<MODALITY>/: {shorten(missing)}; "
            "make them by `python -m examples.prepare.masks`, or pass missing_masks='ones', masks='ones' "
            "or masks='none'"
        )


def shown(file: Path, root: Path) -> str:
    """Return the path of a file for a message, relative to the set."""
    return printable(file.relative_to(root) if file.is_relative_to(root) else file)
