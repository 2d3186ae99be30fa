"""A folder set on disk as a list of items, and every way in which the folders can be wrong.

    ROOT/<split>/<MODALITY>/000028_cam1_0_02.jpg    identity 28, camera 1; the same stem in every modality folder
    ROOT/<split>/mask/000028_cam1_0_02.png          one mask for all modalities: 0 background, 255 foreground; or
    ROOT/<split>/mask_<MODALITY>/<stem>.png         one per modality, which goes before the common one
    ROOT/text/<split>.json                          [{"item": "000028_cam1_0_02.jpg", "description": "..."}, ...]

A split is the folder of its name, or the only one named <split>_<number>, as in RGBNT201/train_171.
"""

import json
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
NAME = re.compile(r"([0-9]+)_cam([0-9]+)(?:_.*)?")


@dataclass(frozen=True)
class Item:
    """One multi-modal sample.

    Attributes:
        name: the stem its files share.
        identity: the number before `_cam`.
        camera: the number after it.
        images: one file per modality, None where it is missing.
        masks: one file per modality, repeated where the mask is common, None where it is missing.
        caption: the description, or None.
    """

    name: str
    identity: int
    camera: int
    images: tuple[Path | None, ...]
    masks: tuple[Path | None, ...]
    caption: str | None


def read_split(
    root: Path | str,
    split: str,
    modalities: Sequence[str],
    *,
    missing_modality: Literal["error", "absent"] = "error",
    missing_caption: Literal["error", "none"] = "error",
    damaged: Literal["error", "skip"] = "error",
) -> list[Item]:
    """List the items of a split. Every image and mask is decoded once, so that none fails in the middle of a training.

    Args:
        root: the folder set.
        split: `train`, `test` or any other split it has.
        modalities: names of the folders to read, in the order of `Item.images`.
        missing_modality: what to do when an image is missing in some folder; "absent" puts None in its place.
        missing_caption: what to do when an item has no caption, or an empty one; "none" puts None in its place.
        damaged: what to do when a file cannot be decoded; "skip" leaves its item out and warns.

    Returns:
        At least one item, sorted by name: the order does not depend on the file system.

    Raises:
        FileNotFoundError: when the root, the split, a modality folder, its images or the captions are not there.
        ValueError: when names, captions or files break the layout above, or an option is unknown.
    """
    check_option("missing_modality", missing_modality, ("error", "absent"))
    check_option("missing_caption", missing_caption, ("error", "none"))
    check_option("damaged", damaged, ("error", "skip"))
    if isinstance(modalities, str) or not modalities or len(set(modalities)) < len(modalities):
        raise ValueError(f"modalities must be a sequence of different folder names; received {modalities!r}")
    folder = _find_split(Path(root), split)
    images = [_images(folder, modality) for modality in modalities]
    names = sorted(set().union(*images))
    keys = _parse(names, folder)
    if missing_modality == "error":
        _refuse_missing(images, modalities, names, folder)
    shared = _by_stem(folder / "mask")
    masks = [shared | _by_stem(folder / f"mask_{modality}") for modality in modalities]
    captions = _captions(Path(root), split, names, required=missing_caption == "error")
    items = [
        Item(
            name,
            *keys[name],
            images=tuple(files.get(name) for files in images),
            masks=tuple(files.get(name) for files in masks),
            caption=captions.get(name),
        )
        for name in names
    ]
    return _without_damaged(items, damaged, folder)


def check_option(argument: str, value: str, options: Collection[str]) -> None:
    if value not in options:
        raise ValueError(f"{argument} must be one of {', '.join(map(repr, options))}; received {value!r}")


def shorten(names: Collection[str]) -> str:
    """The first five names, and how many more there are."""
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(list(names)[:5]) + more


def _subfolders(folder: Path) -> list[str]:
    return sorted(child.name for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))


def _find_split(root: Path, split: str) -> Path:
    if not root.is_dir():
        raise FileNotFoundError(f"root must be the folder of a data set; {root} is not a folder")
    if (root / split).is_dir():
        return root / split
    there = [name for name in _subfolders(root) if _subfolders(root / name)]
    numbered = [name for name in there if re.fullmatch(re.escape(split) + "_[0-9]+", name)]
    if len(numbered) > 1:
        raise ValueError(f"split {split!r} is ambiguous in {root}: give one of {', '.join(numbered)}")
    if not numbered:
        raise FileNotFoundError(f"{root} has no split {split!r}; it has {', '.join(there) or 'none'}")
    return root / numbered[0]


def _by_stem(folder: Path) -> dict[str, Path]:
    """The images in a folder by stem, none when there is no such folder."""
    children = folder.iterdir() if folder.is_dir() else ()
    files = [file for file in children if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    twice = sorted(stem for stem, count in Counter(file.stem for file in files).items() if count > 1)
    if twice:
        raise ValueError(f"{folder} holds several files of one stem, keep one of each: {shorten(twice)}")
    return {file.stem: file for file in files}


def _images(folder: Path, modality: str) -> dict[str, Path]:
    if not (folder / modality).is_dir():
        there = ", ".join(name for name in _subfolders(folder) if name.split("_")[0] != "mask")
        raise FileNotFoundError(f"{folder} has no modality folder {modality!r}; it has {there or 'none'}")
    files = _by_stem(folder / modality)
    if not files:
        raise FileNotFoundError(f"{folder / modality} holds no images ({' '.join(SUFFIXES)})")
    return files


def _parse(names: Iterable[str], folder: Path) -> dict[str, tuple[int, int]]:
    """Identity and camera by name."""
    matches = {name: NAME.fullmatch(name) for name in names}
    strange = [name for name, match in matches.items() if match is None]
    if strange:
        raise ValueError(
            f"{folder}: names must be <identity>_cam<camera>[_...] with two numbers, as 000028_cam1_0_02; "
            f"{len(strange)} are not: {shorten(strange)}"
        )
    return {name: (int(match[1]), int(match[2])) for name, match in matches.items() if match is not None}


def _refuse_missing(images: list[dict[str, Path]], modalities: Sequence[str], names: list[str], folder: Path) -> None:
    missing = [
        f"{modality}/{name}"
        for modality, files in zip(modalities, images, strict=True)
        for name in names
        if name not in files
    ]
    if missing:
        raise ValueError(
            f"{folder}: {len(missing)} images are missing though another modality has them: {shorten(missing)}; "
            "add them, or pass missing_modality='absent'"
        )


def _captions(root: Path, split: str, names: list[str], *, required: bool) -> dict[str, str]:
    """Captions by name, empty ones left out. `train_171` finds its captions in `train.json`."""
    file = root / "text" / f"{split}.json"
    if not file.is_file():
        file = root / "text" / (re.sub("_[0-9]+$", "", split) + ".json")
    if not file.is_file():
        if required:
            raise FileNotFoundError(f"no captions: {file} does not exist; write it, or pass missing_caption='none'")
        return {}
    entries = _caption_entries(file)
    counts = Counter(name for name, _ in entries)
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise ValueError(f"{file}: {len(twice)} items have several captions: {shorten(twice)}")
    unknown = sorted(set(counts).difference(names))
    if unknown:
        raise ValueError(f"{file}: {len(unknown)} captions are of items that do not exist: {shorten(unknown)}")
    captions = {name: description for name, description in entries if description.strip()}
    missing = [name for name in names if name not in captions]
    if missing and required:
        raise ValueError(
            f"{file}: {len(missing)} of {len(names)} items have no caption: {shorten(missing)}; "
            "add them, or pass missing_caption='none'"
        )
    return captions


def _caption_entries(file: Path) -> list[tuple[str, str]]:
    """Stem and description of every entry."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    rule = f'{file} must be a list of {{"item": "<file name>", "description": "<text>"}}'
    if not isinstance(entries, list):
        raise ValueError(f"{rule}; received a {type(entries).__name__}")
    for position, entry in enumerate(entries):
        values = [entry.get(key) for key in ("item", "description")] if isinstance(entry, dict) else [None]
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"{rule}; entry {position} is {json.dumps(entry)[:200]}")
    return [(Path(entry["item"]).stem, entry["description"]) for entry in entries]


def _without_damaged(items: list[Item], damaged: str, folder: Path) -> list[Item]:
    masks = {file for item in items for file in item.masks if file}
    files = sorted(masks.union(file for item in items for file in item.images if file))
    progress = tqdm(files, desc=f"checking {folder}", unit="file", leave=False, disable=len(files) < 1000)
    defects = {file: defect for file in progress if (defect := _defect(file, is_mask=file in masks))}
    if not defects:
        return items
    found = "\n  ".join(f"{file.relative_to(folder)}: {defect}" for file, defect in defects.items())
    message = f"{folder}: {len(defects)} of {len(files)} files cannot be used"
    if damaged == "error":
        raise ValueError(f"{message}; repair them, or pass damaged='skip' to leave their items out:\n  {found}")
    kept = [item for item in items if defects.keys().isdisjoint({*item.images, *item.masks})]
    if not kept:
        raise ValueError(f"{message}, which leaves no item:\n  {found}")
    warnings.warn(f"{message}, {len(items) - len(kept)} items are left out:\n  {found}", stacklevel=3)
    return kept


def _defect(file: Path, *, is_mask: bool) -> str | None:
    """Why a file cannot be used."""
    try:
        with Image.open(file) as image:
            image.load()
            largest = int(np.array(image.convert("L")).max()) if is_mask else 255
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return f"cannot be decoded ({error})"
    if image.mode.startswith(("I", "F")):
        return f"has more than 8 bits (mode {image.mode}); convert it with the range that shall be black to white"
    if 0 < largest < 128:
        return f"is a mask whose largest value is {largest}; foreground must be 255"
    return None
