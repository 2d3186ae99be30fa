"""Captions of items, and further columns from items.csv.

    ROOT/text/<split>.json             [{"item": "000028_cam1_0_02.jpg", "description": "..."}, ...]; or
    ROOT/text/<split>_<MODALITY>.json  one file per modality, whose captions stay apart
    ROOT/items.csv                     item,<column>,...: one line per item of all splits

Files are read as UTF-8, with or without a byte order mark. An empty description, and null, is a missing caption.
The columns are for custom protocols, such as `drop="session"`.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import fields
from pathlib import Path

from stmi_layers.training.messages import printable, shorten
from stmi_layers.training.record import Item
from stmi_layers.training.tables import is_there, read_csv


def read_captions(
    root: Path, splits: Sequence[str], modalities: Sequence[str], names: Collection[str], *, required: bool
) -> dict[str, tuple[str, ...]]:
    """Read captions by item: one common caption, or one per modality ("" if missing). Items without any are left out.

    Args:
        root: folder of the set.
        splits: names under which captions may be filed, `train` or `query` and `gallery`; `train_171` finds its
            captions in `train.json`, too.
        modalities: names of the modalities; their captions are used for an item without a common caption.
        names: names of the items of these splits.
        required: whether every item needs a caption.

    Raises:
        FileNotFoundError: when captions are required and no caption file exists.
        ValueError: when a file breaks the layout above, or a required caption is missing.
    """
    splits = [*splits, *(re.sub("_[0-9]+$", "", split) for split in splits)]
    files = [root / "text" / f"{split}.json" for split in dict.fromkeys(splits)]
    common = _read_all(files, names)
    own = [_read_all([file.with_stem(f"{file.stem}_{name}") for file in files], names) for name in modalities]
    if required and not any(map(is_there, files)) and not any(own):
        raise FileNotFoundError(
            f"captions are required and {files[0]} does not exist; write it by `python -m examples.prepare.captions "
            f"--data {root} --split {splits[0]}`, or make captions optional"
        )
    apart = {name: tuple(one.get(name, "") for one in own) for name in names}
    captions = {name: (common[name],) if name in common else apart[name] for name in names}
    captions = {name: texts for name, texts in captions.items() if any(texts)}
    require_captions(str(files[0]), captions, names, required=required)
    return captions


def require_captions(where: str, captions: Collection[str], names: Collection[str], *, required: bool) -> None:
    """Refuse items without a caption where it is required."""
    missing = [name for name in names if name not in captions] if required else []
    if missing:
        raise ValueError(
            f"{where}: {len(missing)} of {len(names)} items have no caption: {shorten(missing)}; "
            "add them, or make captions optional"
        )


def _read_all(files: Sequence[Path], names: Collection[str]) -> dict[str, str]:
    """Read the captions of all files that exist; empty captions are left out."""
    known, captions = set(names), dict[str, str]()
    for file in files:
        if not is_there(file):
            continue
        entries = [(_name(item, known), description) for item, description in _read_entries(file)]
        twice = [name for name, count in Counter(name for name, _ in entries).items() if count > 1]
        if twice:
            raise ValueError(f"{file}: {len(twice)} items have several captions: {shorten(twice)}")
        unknown = sorted({name for name, _ in entries} - known)
        if unknown:
            raise ValueError(f"{file}: {len(unknown)} captions are of items that do not exist: {shorten(unknown)}")
        captions |= {name: description for name, description in entries if description.strip()}
    return captions


def _name(file: str, known: Collection[str]) -> str:
    """Return the name of the item that an entry describes: its path without suffix, or only the stem."""
    path = Path(file)
    whole = path.with_suffix("").as_posix() if path.name else file
    return whole if whole in known else path.stem


def _read_entries(file: Path) -> list[tuple[str, str]]:
    """Read the item and the description of every entry."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    # ValueError: no UTF-8, no JSON, or a number of thousands of digits.
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    rule = f'{file} must be a list of {{"item": "<file name>", "description": "<text>"}}'
    if not isinstance(entries, list):
        raise ValueError(f"{rule}; received a {type(entries).__name__}")
    for position, entry in enumerate(entries):
        fits = isinstance(entry, dict) and isinstance(entry.get("item"), str) and "description" in entry
        if not fits or not isinstance(entry["description"], str | None):
            raise ValueError(f"{rule}; entry {position} is {printable(json.dumps(entry))[:200]}")
    return [(entry["item"], entry["description"] or "") for entry in entries]


def read_columns(root: Path, names: Collection[str]) -> dict[str, dict[str, str]]:
    """Read the columns of `items.csv` by name of the item; {} if the file does not exist.

    Raises:
        ValueError: when the file cannot be read as a table, lacks the column `item`, has a column that `Item` already
            defines, or lists an item twice or not at all.
    """
    file = root / "items.csv"
    if not is_there(file):
        return {}
    header, rows = read_csv(file, "item")
    taken = sorted({field.name for field in fields(Item)}.intersection(header))
    if taken:
        raise ValueError(
            f"{file} must have the column item and columns with new names; it has "
            f"{printable(', '.join(header))}, of which {', '.join(taken)} is known from the file names"
        )
    known = set(names)
    stems = [_name(row["item"], known) for row in rows]
    twice = [name for name, count in Counter(stems).items() if count > 1]
    if twice:
        raise ValueError(f"{file}: {len(twice)} items have several lines: {shorten(twice)}")
    columns = {stem: {key: row[key] for key in header if key != "item"} for stem, row in zip(stems, rows, strict=True)}
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(f"{file}: {len(missing)} items have no line: {shorten(missing)}")
    return {name: columns[name] for name in names}
