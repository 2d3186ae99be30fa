"""Layouts of sets on disk, and the recognition of the layout of a folder."""

import os
from collections.abc import Sequence
from pathlib import Path

from stmi_layers.training.layouts.found import FoundSet as FoundSet
from stmi_layers.training.layouts.found import found_folders
from stmi_layers.training.layouts.identity_folders import MSVR310, WMVEID863
from stmi_layers.training.layouts.layout import is_split, is_system, refuse_unreadable, subfolders
from stmi_layers.training.layouts.manifest import COLUMNS, EXAMPLE, find_manifest, found_manifest
from stmi_layers.training.layouts.modality_folders import FOLDERS, RGBNT201
from stmi_layers.training.layouts.nested_folders import IDENTITY_FIRST, MODALITY_FIRST
from stmi_layers.training.layouts.panels import RGBN300, RGBNT100

# The first layout that fits is taken: benchmarks before custom sets, files in a modality's folder before files below.
LAYOUTS = (RGBNT100, RGBN300, MSVR310, WMVEID863, RGBNT201, FOLDERS, MODALITY_FIRST, IDENTITY_FIRST)

# Depth, and number of folders per level, of the search for a set inside the folders of an archive.
DEPTH, WIDTH = 2, 50


def recognise(root: Path | str, modalities: Sequence[str] = ()) -> str:
    """Return the name of the layout of a set.

    Raises:
        FileNotFoundError: when there is no set, or it is in no known layout.
    """
    return find_set(Path(root), modalities).layout


def find_set(root: Path, modalities: Sequence[str] = ()) -> FoundSet:
    """Find the set in a folder, in its folder `rgbir` (RGBNT100), or the only set in its folders.

    Args:
        root: folder of the set, or its manifest.
        modalities: names of modalities to recognise besides the usual names.

    Raises:
        FileNotFoundError: when there is no set, or it is in no known layout: the message shows all layouts with an
            example, and the nearest miss.
    """
    manifest = find_manifest(root)
    if manifest is not None:
        return found_manifest(manifest)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"root must be the folder of a data set, or its manifest; {root} is neither")
    refuse_unreadable(root)
    names = [name.lower() for name in modalities]
    found = _look_for(root, names)
    if len(found) == 1:
        return found[0]
    if found:
        sets = ", ".join(str(one.base) for one in found[:5])
        raise FileNotFoundError(f"root must be one set; {root} holds {len(found)}, among them {sets}: give one folder")
    raise FileNotFoundError(_not_recognised(root))


def _look_for(base: Path, modalities: Sequence[str], depth: int = 0) -> list[FoundSet]:
    """Find the set of a folder, otherwise the sets in its folders."""
    found = _look_in(base, modalities)
    # Deeper down, names of splits tell <archive>/<split>/<MODALITY> from folders of other things.
    if found and (depth == 0 or found.layout != FOLDERS.name or any(map(is_split, found.splits))):
        return [found]
    inside = subfolders(base)[:WIDTH] if depth < DEPTH else []
    return [one for name in inside for one in _look_for(base / name, modalities, depth + 1)]


def _look_in(base: Path, modalities: Sequence[str]) -> FoundSet | None:
    """Find the set that a folder, or the folder `rgbir` in it, holds."""
    manifest = find_manifest(base)
    if manifest is not None:
        return found_manifest(manifest)
    bases = [one for one in (base, base / "rgbir") if os.path.isdir(one)]
    fitting = ((layout, one) for layout in LAYOUTS for one in bases if layout.fits(one, modalities))
    layout, one = next(fitting, (None, base))
    return None if layout is None else found_folders(layout, one)


def _not_recognised(root: Path) -> str:
    rules = [(layout.name, layout.evidence, layout.example) for layout in LAYOUTS]
    rules.append(("manifest", f"manifest.csv or manifest.parquet with the columns {COLUMNS}", EXAMPLE))
    shown = "".join(f"\n  {name}: {evidence} as {example}" for name, evidence, example in rules)
    return (
        f"{root} is in no known layout: it holds {', '.join(subfolders(root)) or 'no folder'}. {_nearest_miss(root)}"
        f"Looked for{shown}"
    )


def _nearest_miss(root: Path) -> str:
    """Describe the first image that is found, and why its place fits no rule."""
    for depth in range(5):
        for path in sorted(root.glob("/".join("*" * (depth + 1)))):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp") and not is_system(path.name):
                return f"Nearest miss: {path.relative_to(root)} {_REASONS[depth]}. "
    return "It holds no image down to five folders deep. "


_REASONS = {
    0: "lies in the root itself; it needs a folder of its split, and in this folder a folder of its modality",
    1: "lies in one folder, which would be its split; it needs a folder of its modality inside this folder",
    2: "lies where images do, but its folder is not read as a modality",
    3: "has an identity in its path, but none of its folders has the name of a modality such as RGB, NI, TI, vis or "
    "thermal; rename them, state the modalities, or write a manifest",
    4: "lies too deep: there is one more folder than split, modality and identity; leave it out or write a manifest",
}
