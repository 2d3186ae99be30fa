"""Source of the aerial sets: tiles of cities, photographed in three years, and annotated points at their trees.

J. Ventura et al. 2024, "Individual Tree Detection in Large-Scale Urban Environments using High-Resolution Multispectral
Imagery", Int. J. Applied Earth Observation and Geoinformation 130, 103848. Licence: CC BY 4.0.
"""

import csv
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from examples.optional import import_library

SOURCE = "https://github.com/jonathanventura/urban-tree-detection-data"
COMMIT = "78e81bdbb484048472e77cbedd3afb49a6b621c6"
TRAIN_CITIES = ("long_beach", "palm_springs", "riverside")
# In the order of their identities. Results are reported on Claremont and checked on the other city.
CHECK_CITY, TEST_CITY = "santa_monica", "claremont"
# City of the backgrounds of parcels; it has no identities.
BACKGROUND_CITY = "chico"
YEARS = (2016, 2018, 2020)
# Side of a tile, and its channels: red, green, blue, near infrared.
TILE = (256, 256, 4)


@cache
def opencv() -> Any:
    """Import OpenCV, which only this command needs.

    Raises:
        ImportError: when OpenCV is not installed; the message says what to install.
    """
    return import_library("cv2", "aerial")


def list_tiles(clone: Path, city: str) -> dict[int, dict[int, Path]]:
    """List the tiles of a city by number and year, without tiles that lack a year.

    Raises:
        FileNotFoundError: when the clone has no such tile.
    """
    found: dict[int, dict[int, Path]] = {}
    for file in (clone / "images").glob(f"{city}_20*_*.tif"):
        _, year, number = file.stem.rsplit("_", 2)
        found.setdefault(int(number), {})[int(year)] = file
    complete = {number: files for number, files in sorted(found.items()) if files.keys() == set(YEARS)}
    if not complete:
        raise FileNotFoundError(
            f"{clone} has no tiles images/{city}_YEAR_NUMBER.tif of the years {', '.join(map(str, YEARS))}; "
            f"clone the source: git clone {SOURCE}"
        )
    return complete


def list_backgrounds(clone: Path) -> dict[int, list[Path]]:
    """List the background tiles of the parcels, by year; 2016 takes the tiles of 2018.

    Raises:
        FileNotFoundError: when the clone has no tile of a year.
    """
    found = {year: sorted((clone / "images").glob(f"{BACKGROUND_CITY}_{year}_*.tif")) for year in YEARS[1:]}
    if lacking := [year for year, files in found.items() if not files]:
        raise FileNotFoundError(
            f"{clone} has no tiles images/{BACKGROUND_CITY}_{lacking[0]}_NUMBER.tif; "
            f"clone the source: git clone {SOURCE}"
        )
    return {YEARS[0]: found[YEARS[1]], **found}


def read_tile(file: Path) -> np.ndarray:
    """Read a tile as bytes (256, 256, 4).

    Raises:
        ValueError: when the file holds another kind of image.
    """
    tile = import_library("tifffile", "aerial").imread(file)
    if tile.shape != TILE or tile.dtype != np.uint8:
        raise ValueError(f"{file} must hold bytes of shape {TILE}; received {tile.dtype} of shape {tile.shape}")
    return tile


def read_trees(clone: Path, file: Path) -> np.ndarray:
    """Read the annotated trees of a tile as pixels (trees, 2), x before y; a tile without trees has no file."""
    listed = clone / "csv" / f"{file.stem}.csv"
    if not listed.exists():
        return np.zeros((0, 2))
    with listed.open(newline="") as lines:
        points = [(float(row["x"]), float(row["y"])) for row in csv.DictReader(lines)]
    return np.array(points).reshape(-1, 2)
