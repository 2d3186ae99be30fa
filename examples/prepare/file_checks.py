"""Problems of the files of a set, and notes on how files are read.

Unusable files, duplicates, and images and masks of different shapes are problems. Policies that apply to files become
notes with a count. No file in a set can end the check.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from stmi_layers.training.checks import check_files, look_at
from stmi_layers.training.depth import read_counts
from stmi_layers.training.images import opened
from stmi_layers.training.layouts.leftovers import describe_counts
from stmi_layers.training.messages import printable
from stmi_layers.training.record import Item, path_of
from stmi_layers.training.settings import Range
from stmi_layers.training.splits import ranges_by_file, shown

# Image and mask are stretched to one size, so that different aspect ratios beyond rounding would misalign them.
SHAPE_TOLERANCE = 0.02
# Largest number of bytes of a file that are compared with other files.
COMPARED = 64 * 2**20
# Largest number of pixels of a deep image for the percentiles.
PIXELS = 4096
PERCENTILES = (0.001, 0.999)
IMAGE_NOTES = {
    "alpha": "images are partly transparent, which is ignored",
    "pages": "files hold several pages or frames, of which the first is read",
    "turned": "images are turned upright as their orientation tag says",
    "bands": "images have bands beyond their colours, which are not read",
    "profile": "images have a colour profile other than sRGB, which is not applied",
    "clipped": "images have more than 1 % of their counts beyond the range of their modality",
}
MASK_NOTES = {
    "levels": "masks have values between black and white, of which those above 127 are foreground",
    "empty": "masks have no foreground",
    "full": "masks have no background",
    "inverted": "masks are foreground along the border: check whether they are inverted",
    "turned": "masks are turned upright as their orientation tag says",
    "bands": "masks have bands beyond the first, which are not read",
    "pages": "masks hold several pages or frames, of which the first is read",
}


def inspect_files(
    splits: Mapping[str, Sequence[Item]],
    modalities: Sequence[str],
    root: Path,
    *,
    ranges: Mapping[str, Range] | None = None,
    workers: int = 0,
    quiet: bool = False,
) -> dict[str, list[str]]:
    """Find problems by kind, and under "notes" facts that may be intended.

    Args:
        splits: items of every split.
        modalities: names of the modalities of an item.
        root: folder to which paths in messages are relative.
        ranges: counts that become black and white in deep images, by modality.
        workers: number of threads; 0 takes one per CPU.
        quiet: show no progress bar.
    """
    items = [(split, item) for split, some in splits.items() for item in some]
    images = {path_of(source): source for _, item in items for source in item.images if source}
    masks = {path for _, item in items for path in item.masks if path}
    bounds = ranges_by_file([item for _, item in items], modalities, ranges or {})
    options = {"root": root, "workers": workers, "quiet": quiet}
    looks = check_files(images.values(), set(), ranges=bounds, **options)
    of_masks = check_files([], masks, **options)
    defects = {path: look.defect for path, look in (looks | of_masks).items() if look.defect}
    sound = {path: look.size for path, look in (looks | of_masks).items() if not look.defect}
    found = {"unreadable": [f"{shown(path, root)} {printable(defect)}" for path, defect in sorted(defects.items())]}
    found["duplicated"] = list(_duplicates(items, [path for path in images if path in sound], root, workers))
    found |= _mismatches(items, sound)
    found["notes"].append(f"images by suffix: {describe_counts(Counter(path.suffix for path in images))}")
    for kinds, some in ((IMAGE_NOTES, looks), (MASK_NOTES, of_masks)):
        counts = Counter(note for look in some.values() for note in look.notes)
        found["notes"] += [f"{counts[kind]} of {len(some)} {text}" for kind, text in kinds.items() if counts[kind]]
    return found


def suggest_ranges(splits: Mapping[str, Sequence[Item]], modalities: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Return, for every modality with deep images, the counts below which 0.1 % and 99.9 % of the pixels lie.

    The counts are taken from the training split if there is one, at evenly spaced pixels of every image.
    """
    split = next((name for name in splits if name.startswith("train")), next(iter(splits), ""))
    found: dict[str, tuple[float, float]] = {}
    for position, name in enumerate(modalities):
        files = [path_of(source) for item in splits.get(split, ()) if (source := item.images[position])]
        counts = [some for file in files if (some := _some_counts(file)) is not None]
        if counts:
            low, high = np.quantile(np.concatenate(counts), PERCENTILES)
            found[name] = (float(low), float(max(high, low + 1)))
    return found


def _some_counts(file: Path) -> np.ndarray | None:
    """Return the counts of some pixels of a deep image; None for any other file."""
    if "deep" not in look_at(file).notes:
        return None
    try:
        counts = read_counts(file, opened).ravel()
    except Exception:  # a damaged file, which is named among unreadable files
        return None
    return counts[:: max(1, len(counts) // PIXELS)].astype(np.float64)


def _duplicates(items: Sequence[tuple[str, Item]], files: Sequence[Path], root: Path, workers: int) -> Iterator[str]:
    """Yield images with equal bytes, unless they are one item in the folders of query and gallery."""
    owners = {path_of(source): item for _, item in items for source in item.images if source}
    sizes = Counter(path.stat().st_size for path in files)
    alike = [path for path in files if sizes[path.stat().st_size] > 1]
    same: dict[bytes, list[Path]] = {}
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        for path, digest in zip(alike, pool.map(_digest, alike), strict=True):
            same.setdefault(digest, []).append(path)
    for paths in same.values():
        places = {(owners[path].name, path.parent.name) for path in paths}
        roles = sorted(owners[path].role for path in paths)
        names = {name for name, _ in places}
        if len(paths) > 1 and not (len(names) == 1 and roles == ["gallery", "query"]):
            yield " = ".join(shown(path, root) for path in sorted(paths))


def _digest(path: Path) -> bytes:
    """Return a digest of the first bytes of a file, or its path if the file is gone meanwhile."""
    try:
        with path.open("rb") as file:
            return hashlib.blake2b(file.read(COMPARED), digest_size=16).digest()
    except OSError:
        return os.fsencode(path)


def _mismatches(items: Sequence[tuple[str, Item]], sizes: Mapping[Path, tuple[int, int]]) -> dict[str, list[str]]:
    """Find items whose images and masks differ in shape, and count items whose images differ only in size."""
    found, scaled = dict[str, None](), 0
    for split, item in items:
        name = printable(item.name)
        images = [sizes[path_of(source)] for source in item.images if source and path_of(source) in sizes]
        if images and _differ(images):
            found[f"{split}: the images of {name} are {_listed(images)}"] = None
        scaled += len(set(images)) > 1
        for source, mask in zip(item.images, item.masks, strict=True):
            # Arrays are stored at the size of the network, not at that of the image.
            if not source or not mask or mask.suffix == ".npy" or not {path_of(source), mask} <= sizes.keys():
                continue
            pair = [sizes[path_of(source)], sizes[mask]]
            if _differ(pair):
                found[f"{split}: an image and the mask of {name} are {_listed(pair)}"] = None
    notes = [f"{scaled} items have images of different sizes, which are scaled to one"] if scaled else []
    return {"mismatched": list(found), "notes": notes}


def _differ(sizes: Sequence[tuple[int, int]]) -> bool:
    ratios = [width / height for width, height in sizes]
    return max(ratios) > (1 + SHAPE_TOLERANCE) * min(ratios)


def _listed(sizes: Sequence[tuple[int, int]]) -> str:
    return " and ".join(f"{width} x {height}" for width, height in sizes)
