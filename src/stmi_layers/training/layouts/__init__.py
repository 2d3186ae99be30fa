"""Which benchmark a folder holds, and which folders make up a split of it."""

import re
from pathlib import Path

from stmi_layers.training.layouts.identity_folders import MSVR310, WMVEID863
from stmi_layers.training.layouts.layout import Layout as Layout
from stmi_layers.training.layouts.layout import shorten as shorten
from stmi_layers.training.layouts.layout import subfolders
from stmi_layers.training.layouts.modality_folders import FOLDERS, RGBNT201
from stmi_layers.training.layouts.panels import RGBN300, RGBNT100
from stmi_layers.training.record import Role

# The first that fits is taken: a folder set of one's own is what is left.
LAYOUTS = (RGBNT100, RGBN300, MSVR310, WMVEID863, RGBNT201, FOLDERS)


def recognise(root: Path | str) -> str:
    """The name of the layout of a folder.

    Raises:
        FileNotFoundError: when it is no folder, or in no known layout; the message lists what was looked for.
    """
    return find_layout(Path(root))[0].name


def find_layout(root: Path) -> tuple[Layout, Path]:
    """The layout of a folder, and where in it the splits are: RGBNT100 may be given with or without its `rgbir`."""
    if not root.is_dir():
        raise FileNotFoundError(f"root must be the folder of a data set (--data); {root} is not a folder")
    for layout in LAYOUTS:
        for base in (root, root / "rgbir"):
            if base.is_dir() and layout.fits(base):
                return layout, base
    looked_for = "".join(f"\n  {layout.name}: {layout.evidence}" for layout in LAYOUTS)
    raise FileNotFoundError(
        f"{root} is in no known layout: it holds {', '.join(subfolders(root)) or 'no folder'}. Looked for{looked_for}"
    )


def list_splits(layout: Layout, base: Path) -> list[str]:
    """The splits there are; `test` stands for query and gallery."""
    if layout.folders:
        there = [role for role, folder in layout.folders.items() if (base / folder).is_dir()]
    else:
        there = _nested(base)
    if {"query", "gallery"}.issubset(there) and "test" not in there:
        return [name for name in there if name not in ("query", "gallery")] + ["test"]
    return there


def split_folders(layout: Layout, base: Path, split: str) -> list[tuple[Role, Path]]:
    """The folders of a split, each with the role of its items.

    Raises:
        FileNotFoundError: when the set has no such split, or a folder of it is missing.
        ValueError: when several folders could be meant, or the benchmark knows no such split.
    """
    if layout.folders:
        return _of_benchmark(layout, base, split)
    there = _nested(base)
    if split in ("query", "gallery") and split in there:
        return [(split, base / split)]
    if (base / split).is_dir():
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
    missing = [folder.name for _, folder in folders if not folder.is_dir()]
    if missing:
        raise FileNotFoundError(f"split {split!r} of {layout.name} lacks its folder {' and '.join(missing)} in {base}")
    return folders


def _nested(base: Path) -> list[str]:
    """Folders that hold folders, which splits are."""
    return [name for name in subfolders(base) if subfolders(base / name)]
