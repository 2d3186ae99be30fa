"""Folders in the layouts of the public benchmarks, with a chosen number of small files."""

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

# Called with a file to be written.
Write = Callable[[Path], object]


class EmptyFiles:
    """Writes empty files as hard links to one, which takes a few microseconds each."""

    def __init__(self, folder: Path) -> None:
        self.original = folder / "empty"
        self.original.parent.mkdir(parents=True, exist_ok=True)
        self.original.touch()
        self.made: set[Path] = set()

    def __call__(self, path: Path) -> None:
        if path.parent not in self.made:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.made.add(path.parent)
        os.link(self.original, path)


def noise(path: Path, size: tuple[int, int] = (16, 16), low: int = 0, high: int = 255) -> None:
    """A random image of its own, the same for the same path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(list(path.name.encode() + path.parent.name.encode()))
    Image.fromarray(random.integers(low, high, (*size, 3), np.uint8)).save(path)


def spread(count: int, *ranges: Sequence[int]) -> list[tuple[int, ...]]:
    """`count` rows that use every value of every range: the first one in turn, each of its values with all others."""
    first, *others = ranges
    rows = (divmod(row, len(first)) for row in range(count))
    return [(first[place], *(values[(turn + place) % len(values)] for values in others)) for turn, place in rows]


def rgbnt201(root: Path, split: str, triplets: int, identities: range, cameras: range, write: Write) -> None:
    numbers: Counter[tuple[int, ...]] = Counter()
    for row in spread(triplets, identities, cameras):
        for modality in ("RGB", "NI", "TI"):
            write(root / split / modality / f"{row[0]:06d}_cam{row[1]}_0_{numbers[row]:02d}.jpg")
        numbers[row] += 1


def panels(root: Path, folder: str, count: int, identities: range, cameras: range, write: Write) -> None:
    """RGBNT100 and RGBN300; `write` decides how many panels there are."""
    numbers: Counter[int] = Counter()
    for identity, camera in spread(count, identities, cameras):
        write(root / folder / f"{identity:04d}_c{camera:04d}_{numbers[identity]:03d}.jpg")
        numbers[identity] += 1


def msvr310(
    root: Path, folder: str, triplets: int, identities: range, scenes: range, views: range, write: Write
) -> None:
    numbers: Counter[int] = Counter()
    for identity, scene, view in spread(triplets, identities, scenes, views):
        name = f"{identity:04d}_s{scene:03d}_v{view}_{numbers[identity]:03d}.jpg"
        for modality in ("vis", "ni", "th"):
            write(root / folder / f"{identity:04d}" / modality / name)
        numbers[identity] += 1


def wmveid863(root: Path, folder: str, triplets: int, identities: range, views: range, write: Write) -> None:
    numbers: Counter[int] = Counter()
    for identity, view in spread(triplets, identities, views):
        name = f"{identity:04d}_v{view}_n{view % 2}_s999_{numbers[identity]:03d}.jpg"
        for modality in ("vis", "ni", "th"):
            write(root / folder / f"{identity:04d}" / modality / name)
        numbers[identity] += 1
