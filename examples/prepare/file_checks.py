"""What is wrong with the files of a set: unreadable, duplicated, or of shapes that do not belong together.

Files are decoded in threads, a batch at a time; only their sizes and digests are kept.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from stmi_layers.training.record import Item, Panel, Source, find_defect, path_of

BATCH = 512
# A network sees both stretched to one size, so a difference in shape beyond rounding moves one against the other.
SHAPE_TOLERANCE = 0.02


class Facts(NamedTuple):
    """Width and height of an image, of one panel where there are several; digest of the file; why it is unusable."""

    size: tuple[int, int]
    digest: bytes
    defect: str | None


def check_files(
    splits: Mapping[str, Sequence[Item]], root: Path, *, workers: int = 0, quiet: bool = False
) -> dict[str, list[str]]:
    """Problems by kind, and under "notes" what may be as it should.

    Args:
        splits: the items of every split.
        root: that paths are given relative to.
        workers: threads, 0 for as many as there are CPUs.
        quiet: without a progress bar.
    """
    items = [(split, item) for split, some in splits.items() for item in some]
    images = {path_of(source): source for _, item in items for source in item.images if source}
    masks = {path for _, item in items for path in item.masks if path}
    sources: list[Source] = [*images.values(), *sorted(masks)]
    facts: dict[Path, Facts] = {}
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool, tqdm(total=len(sources), disable=quiet) as progress:
        for first in range(0, len(sources), BATCH):
            some = sources[first : first + BATCH]
            found = pool.map(lambda source: look_at(source, is_mask=source in masks), some)
            facts |= zip(map(path_of, some), found, strict=True)
            progress.update(len(some))
    found = {"unreadable": [f"{_short(path, root)} {fact.defect}" for path, fact in facts.items() if fact.defect]}
    found |= {"duplicated": list(_duplicates(items, {path: facts[path].digest for path in images}, root))}
    return found | _mismatches(items, {path: fact.size for path, fact in facts.items() if fact.defect is None})


def look_at(source: Source, *, is_mask: bool) -> Facts:
    """Read and decode one file."""
    path = path_of(source)
    digest = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    if defect := find_defect(source, is_mask=is_mask):
        return Facts((0, 0), digest, defect)
    if path.suffix == ".npy":
        height, width = np.load(path, mmap_mode="r").shape
        return Facts((width, height), digest, None)
    with Image.open(path) as image:
        width = image.width // source.count if isinstance(source, Panel) else image.width
        return Facts((width, image.height), digest, None)


def _duplicates(items: Sequence[tuple[str, Item]], digests: Mapping[Path, bytes], root: Path) -> Iterator[str]:
    """Images with the same bytes, unless they are one item that is query and gallery in folders of its own."""
    owners = {path_of(source): item for _, item in items for source in item.images if source}
    same: dict[bytes, list[Path]] = {}
    for path, digest in digests.items():
        same.setdefault(digest, []).append(path)
    for paths in same.values():
        shown = {(owners[path].name, path.parent.name) for path in paths}
        roles = sorted(owners[path].role for path in paths)
        names = {name for name, _ in shown}
        if len(paths) > 1 and not (len(names) == 1 and roles == ["gallery", "query"]):
            yield " = ".join(_short(path, root) for path in sorted(paths))


def _mismatches(items: Sequence[tuple[str, Item]], sizes: Mapping[Path, tuple[int, int]]) -> dict[str, list[str]]:
    """Images and masks of an item whose shapes differ, and how many differ in nothing but their size."""
    found, scaled = dict[str, None](), 0
    for split, item in items:
        images = [sizes[path_of(source)] for source in item.images if source and path_of(source) in sizes]
        if images and _differ(images):
            found[f"{split}: the images of {item.name} are {_listed(images)}"] = None
        scaled += len(set(images)) > 1
        for source, mask in zip(item.images, item.masks, strict=True):
            # Arrays are stored at the size of the network, whatever that of the image is.
            if not source or not mask or mask.suffix == ".npy" or not {path_of(source), mask} <= sizes.keys():
                continue
            pair = [sizes[path_of(source)], sizes[mask]]
            if _differ(pair):
                found[f"{split}: an image and the mask of {item.name} are {_listed(pair)}"] = None
    notes = [f"{scaled} items have images of different sizes, which are scaled to one"] if scaled else []
    return {"mismatched": list(found), "notes": notes}


def _differ(sizes: Sequence[tuple[int, int]]) -> bool:
    ratios = [width / height for width, height in sizes]
    return max(ratios) > (1 + SHAPE_TOLERANCE) * min(ratios)


def _listed(sizes: Sequence[tuple[int, int]]) -> str:
    return " and ".join(f"{width} x {height}" for width, height in sizes)


def _short(path: Path, root: Path) -> str:
    return str(path.relative_to(root))
