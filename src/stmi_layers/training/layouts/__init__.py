"""Layouts of sets on disk: which one a folder has, and the splits, modalities and items it holds."""

from collections.abc import Sequence
from pathlib import Path

from stmi_layers.training.layouts.found import FoundSet, found_folders
from stmi_layers.training.layouts.identity_folders import MSVR310, WMVEID863
from stmi_layers.training.layouts.layout import is_system, subfolders
from stmi_layers.training.layouts.manifest import COLUMNS, EXAMPLE, find_manifest, found_manifest
from stmi_layers.training.layouts.modality_folders import FOLDERS, RGBNT201
from stmi_layers.training.layouts.nested_folders import IDENTITY_FIRST, MODALITY_FIRST
from stmi_layers.training.layouts.panels import RGBN300, RGBNT100

# The first that fits is taken: benchmarks before sets of one's own, files where a modality is before files below it.
LAYOUTS = (RGBNT100, RGBN300, MSVR310, WMVEID863, RGBNT201, FOLDERS, MODALITY_FIRST, IDENTITY_FIRST)


def recognise(root: Path | str, modalities: Sequence[str] = ()) -> str:
    """The name of the layout of a set.

    Raises:
        FileNotFoundError: when there is no set, or it is in no known layout.
    """
    return find_set(Path(root), modalities).layout


def find_set(root: Path, modalities: Sequence[str] = ()) -> FoundSet:
    """The set in a folder, in the folder `rgbir` of RGBNT100, or in a folder that the root holds alone.

    Args:
        root: folder of the set, or its manifest.
        modalities: names of modalities that are to be recognised besides the usual ones.

    Raises:
        FileNotFoundError: when there is no set, or it is in no known layout: the message shows all layouts with an
            example, and the nearest miss.
    """
    manifest = find_manifest(root)
    if manifest is not None:
        return found_manifest(manifest)
    if not root.is_dir():
        raise FileNotFoundError(f"root must be the folder of a data set, or its manifest; {root} is neither")
    names = [name.lower() for name in modalities]
    for base in _bases(root):
        manifest = find_manifest(base)
        if manifest is not None:
            return found_manifest(manifest)
        for layout in LAYOUTS:
            if layout.fits(base, names):
                return found_folders(layout, base)
    raise FileNotFoundError(_not_recognised(root))


def _bases(root: Path) -> list[Path]:
    """Folders in which splits may lie: the root, `rgbir`, and what an archive put around them."""
    bases = [root, root / "rgbir"]
    inner = root
    while len(names := subfolders(inner)) == 1 and len(bases) < 6:
        inner = inner / names[0]
        bases += [inner, inner / "rgbir"]
    return [base for base in bases if base.is_dir()]


def _not_recognised(root: Path) -> str:
    rules = [(layout.name, layout.evidence, layout.example) for layout in LAYOUTS]
    rules.append(("manifest", f"manifest.csv or manifest.parquet with the columns {COLUMNS}", EXAMPLE))
    shown = "".join(f"\n  {name}: {evidence} as {example}" for name, evidence, example in rules)
    return (
        f"{root} is in no known layout: it holds {', '.join(subfolders(root)) or 'no folder'}. {_nearest_miss(root)}"
        f"Looked for{shown}"
    )


def _nearest_miss(root: Path) -> str:
    """The first image there is, and why its place fits no rule."""
    for depth in range(5):
        for path in sorted(root.glob("/".join("*" * (depth + 1)))):
            if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp") and not is_system(path.name):
                return f"Nearest miss: {path.relative_to(root)} {_REASONS[depth]}. "
    return "It holds no image down to five folders deep. "


_REASONS = {
    0: "lies in the root itself; it needs a folder of its split, and in that one of its modality",
    1: "lies in one folder, which would be its split; it needs a folder of its modality in that",
    2: "lies where images do, but its folder is not read as a modality",
    3: "has an identity in its path, but none of its folders has the name of a modality such as RGB, NI, TI, vis or "
    "thermal; rename them, state the modalities, or write a manifest",
    4: "lies too deep: there is one more folder than split, modality and identity; leave it out or write a manifest",
}
