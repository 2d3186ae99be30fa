"""Manifest: one CSV or Parquet table that lists every item of a set.

    identity,camera,split,RGB,TI,mask,day
    red-truck,2,train,visible/a.jpg,thermal/a.png,masks/a.png,mon

One row is one item. A column whose cells are paths of images is a modality; paths are relative to the folder of the
manifest. `split` is train, test, query, gallery or another name. Optional columns are `item`, the name, by default the
path of the first image without its suffix; `camera`, `view` and `scene`, whole numbers; `mask` and `mask_<MODALITY>`;
`caption` and `caption_<MODALITY>`. All other columns are for protocols. An empty cell is a missing value.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from stmi_layers.training.images import SUFFIXES
from stmi_layers.training.layouts.found import FoundSet, with_test
from stmi_layers.training.layouts.items import read_fields
from stmi_layers.training.layouts.layout import in_order
from stmi_layers.training.messages import printable, shorten
from stmi_layers.training.record import Item, Role
from stmi_layers.training.tables import Rows, is_there, read_csv, read_parquet

NAMES = ("manifest.csv", "manifest.parquet")
COLUMNS = "split, identity, one per modality with paths, optionally item, camera, view, scene, mask, caption"
EXAMPLE = "split,identity,camera,RGB,TI / train,red-truck,2,visible/a.jpg,thermal/a.png"
RESERVED = ("item", "identity", "camera", "view", "scene", "split", "mask", "caption")


def find_manifest(root: Path) -> Path | None:
    """Find the manifest at a path, or in the folder at the path."""
    if root.suffix.lower() in (".csv", ".parquet", ".pq"):
        return root if is_there(root) else None
    return next((root / name for name in NAMES if os.path.isdir(root) and is_there(root / name)), None)


def found_manifest(file: Path) -> FoundSet:
    """Return the record of the set that a manifest lists.

    Raises:
        ValueError: when the table cannot be read, lacks a column, or names items that cannot be files.
    """
    header, rows = (read_csv if file.suffix.lower() == ".csv" else read_parquet)(file, "split")
    modalities = in_order(name for name in header if _is_modality(name, rows))
    if not modalities:
        raise ValueError(f"{file} must have a column of paths of images per modality; it has {', '.join(header)}")
    splits = list(dict.fromkeys(row["split"] or "" for row in rows))
    if "" in splits:
        raise ValueError(f"{file}: {sum(not row['split'] for row in rows)} rows have no split")
    return FoundSet(
        layout="manifest",
        rule=f"the manifest {file}, modalities are its columns {', '.join(modalities)}",
        base=file.parent,
        splits=tuple(with_test(splits)),
        missing=(),
        list_modalities=lambda split: modalities,
        list_items=partial(_list_items, file, modalities, rows),
    )


def _is_modality(name: str, rows: Rows) -> bool:
    """Tell whether all cells of a column that are not empty have the suffix of an image."""
    cells = [cell for row in rows if (cell := row[name])]
    is_other = name in RESERVED or name.startswith(("mask_", "caption_"))
    return not is_other and bool(cells) and all(os.path.splitext(cell)[1].lower() in SUFFIXES for cell in cells)


def _list_items(file: Path, there: Sequence[str], rows: Rows, split: str, modalities: Sequence[str]) -> list[Item]:
    unknown = [name for name in modalities if name not in there]
    if unknown:
        raise FileNotFoundError(f"{file} has no modality {unknown[0]!r}; it has {', '.join(there)}")
    splits = dict.fromkeys(row["split"] for row in rows)
    parts = ("query", "gallery") if split == "test" and "test" not in splits else (split,)
    if not set(parts) <= set(splits):
        raise FileNotFoundError(f"{file} has no split {split!r}; it has {', '.join(map(str, splits))}")
    items = [
        _item(file, row, number, modalities, there) for number, row in enumerate(rows, start=2) if row["split"] in parts
    ]
    twice = [name for (_, name), count in Counter((item.role, item.name) for item in items).items() if count > 1]
    if twice:
        raise ValueError(f"{file}: {len(twice)} items of {split} have several rows: {shorten(twice)}")
    return sorted(items, key=lambda item: (item.role != "query", item.name))


def _item(file: Path, row: Mapping[str, str], number: int, modalities: Sequence[str], there: Sequence[str]) -> Item:
    where = f"{file}, row {number}"
    paths = [row[name] for name in modalities]
    first = next(filter(None, paths), None)
    if first is None:
        raise ValueError(f"{where}: no image in {', '.join(modalities)}")
    shared, common = row.get("mask", ""), row.get("caption", "").strip()
    masks = [(row.get(f"mask_{name}") or shared) if path else "" for name, path in zip(modalities, paths, strict=True)]
    own = tuple(row.get(f"caption_{name}", "").strip() for name in modalities)
    role: Role = row["split"] if row["split"] in ("query", "gallery") else "both"  # pyright: ignore[reportAssignmentType]
    used = {"item", "split", "mask", "caption", *there}
    fields = {key: row[key] for key in row if key not in used and not key.startswith(("mask_", "caption_"))}
    return Item(
        _name(row.get("item") or first, where),
        images=tuple(file.parent / path if path else None for path in paths),
        masks=tuple(file.parent / path if path else None for path in masks),
        captions=(common,) if common else own if any(own) else (),
        role=role,
        layout="manifest",
        **read_fields(fields, where, named=True),
    )


def _name(text: str, where: str) -> str:
    """Return the name of an item as a relative path without "..", because commands write files under this name."""
    path = PurePosixPath(text.replace("\\", "/"))
    parts = [part for part in path.with_suffix("").parts if part not in ("/", "..")] if path.name else []
    if not parts or not all(map(str.isprintable, parts)) or ":" in text:
        raise ValueError(f"{where}: item must be a name or a relative path; received {printable(text)!r}")
    return "/".join(parts)
