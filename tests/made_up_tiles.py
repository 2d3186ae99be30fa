"""Imitation of the source of the aerial sets: smooth noise as tiles, and points as trees."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

YEARS = (2016, 2018, 2020)
# Tiles by city; numbers beyond 9 tell numbers from names when sorted.
NUMBERS: dict[str, tuple[int, ...]] = {
    "long_beach": (0, 2, 10),
    "palm_springs": (1,),
    "riverside": (0, 3),
    "santa_monica": (4,),
    "claremont": (0, 11),
    "chico": (0, 1, 2),
}


def write_clone(root: Path, numbers: Mapping[str, tuple[int, ...]] = NUMBERS, *, seed: int = 0) -> Path:
    """Tiles of all cities and years, and trees of most; one tile lacks a year."""
    tifffile = pytest.importorskip("tifffile")
    (root / "images").mkdir(parents=True)
    (root / "csv").mkdir()
    random = np.random.default_rng(seed)
    for city, of_city in numbers.items():
        for number in of_city:
            for year in YEARS:
                tifffile.imwrite(
                    root / "images" / f"{city}_{year}_{number}.tif", tile(random), photometric="rgb", extrasamples=[0]
                )
                write_trees(root / "csv" / f"{city}_{year}_{number}.csv", random)
    (root / "images" / "long_beach_2018_2.tif").unlink()
    return root


def tile(random: np.random.Generator) -> np.ndarray:
    """Bytes (256, 256, 4) of blocks and noise, with vegetation in some of the blocks."""
    blocks = random.integers(20, 236, (16, 16, 4))
    green = random.random((16, 16)) < random.uniform(0, 0.6)
    blocks[..., 3] = np.where(green, 200, blocks[..., 0] * 0.8)
    blocks[..., 0] = np.where(green, 60, blocks[..., 0])
    return np.clip(blocks.repeat(16, 0).repeat(16, 1) + random.normal(0, 8, (256, 256, 4)), 0, 255).astype(np.uint8)


def write_trees(file: Path, random: np.random.Generator) -> None:
    """Up to 40 points, or no file."""
    count = int(random.integers(0, 41))
    if not count:
        return
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines)
        writer.writerow(["x", "y"])
        writer.writerows(random.uniform(0, 256, (count, 2)).round(2))
