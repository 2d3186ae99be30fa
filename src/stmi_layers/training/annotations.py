"""What is known about items beside their images: captions, and columns of one's own.

    ROOT/text/<split>.json             [{"item": "000028_cam1_0_02.jpg", "description": "..."}, ...]; or
    ROOT/text/<split>_<MODALITY>.json  one file per modality, whose captions are joined in the order of the modalities
    ROOT/items.csv                     item,<column>,...: one line per item of all splits

The columns are for protocols of one's own, such as `--drop session`.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path

from stmi_layers.training.layouts import shorten
from stmi_layers.training.record import Item


def read_captions(
    root: Path, splits: Sequence[str], modalities: Sequence[str], names: Collection[str], *, required: bool
) -> dict[str, str]:
    """Captions by name, empty ones left out.

    Args:
        root: of the set.
        splits: the names under which captions may be filed, `train` or `query` and `gallery`; `train_171` finds its
            captions in `train.json`, too.
        modalities: whose own captions stand in where there is no common one.
        names: the items of these splits.
        required: whether every item needs one.

    Raises:
        FileNotFoundError: when captions are required and there is no file of them.
        ValueError: when a file breaks the layout above, or a required caption is missing.
    """
    splits = [*splits, *(re.sub("_[0-9]+$", "", split) for split in splits)]
    files = [root / "text" / f"{split}.json" for split in dict.fromkeys(splits)]
    common = _read_all(files, names)
    own = [_read_all([file.with_stem(f"{file.stem}_{name}") for file in files], names) for name in modalities]
    if required and not any(file.is_file() for file in files) and not any(own):
        raise FileNotFoundError(
            f"no captions: {files[0]} does not exist; write it by `python -m examples.prepare.captions --data {root} "
            f"--split {splits[0]}`, or pass missing_caption='none' (--captions optional)"
        )
    joined = {name: " ".join(dict.fromkeys(one[name] for one in own if name in one)) for name in names}
    captions = {name: caption for name in names if (caption := common.get(name) or joined[name])}
    missing = [name for name in names if name not in captions]
    if missing and required:
        raise ValueError(
            f"{files[0]}: {len(missing)} of {len(names)} items have no caption: {shorten(missing)}; "
            "add them, or pass missing_caption='none' (--captions optional)"
        )
    return captions


def _read_all(files: Sequence[Path], names: Collection[str]) -> dict[str, str]:
    """The captions of all files that exist."""
    known, captions = set(names), dict[str, str]()
    for file in files:
        if not file.is_file():
            continue
        entries = _read_entries(file)
        twice = [name for name, count in Counter(name for name, _ in entries).items() if count > 1]
        if twice:
            raise ValueError(f"{file}: {len(twice)} items have several captions: {shorten(twice)}")
        unknown = sorted({name for name, _ in entries} - known)
        if unknown:
            raise ValueError(f"{file}: {len(unknown)} captions are of items that do not exist: {shorten(unknown)}")
        captions |= {name: description for name, description in entries if description.strip()}
    return captions


def _read_entries(file: Path) -> list[tuple[str, str]]:
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


def read_columns(root: Path, names: Collection[str]) -> dict[str, dict[str, str]]:
    """The columns of `items.csv` by name of the item; nothing where there is no such file.

    Raises:
        ValueError: when the file has no column `item`, one that an `Item` has already, an item twice or not at all.
    """
    file = root / "items.csv"
    if not file.is_file():
        return {}
    with file.open(encoding="utf-8", newline="") as lines:
        table = csv.DictReader(lines)
        header, rows = list(table.fieldnames or ()), list(table)
    taken = sorted({field.name for field in fields(Item)}.intersection(header))
    if "item" not in header or taken or len(set(header)) < len(header):
        raise ValueError(
            f"{file} must have the column item and others with names of their own; it has {', '.join(header)}"
            + (f", of which {', '.join(taken)} is known from the file names" if taken else "")
        )
    stems = [Path(row["item"]).stem for row in rows]
    twice = [name for name, count in Counter(stems).items() if count > 1]
    if twice:
        raise ValueError(f"{file}: {len(twice)} items have several lines: {shorten(twice)}")
    columns = {stem: {key: row[key] for key in header if key != "item"} for stem, row in zip(stems, rows, strict=True)}
    missing = [name for name in names if None in columns.get(name, {"": None}).values()]
    if missing:
        raise ValueError(f"{file}: {len(missing)} items have no line, or an incomplete one: {shorten(missing)}")
    return {name: columns[name] for name in names}
