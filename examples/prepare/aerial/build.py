"""Two sets of real images in two modalities, RGB and near infrared, and the source of every file.

- `naip_places`: an identity is a tile, photographed in 2016 (cam1), 2018 (cam2) and 2020 (cam3); an image is a crop of
  128 x 128 pixels. The mask holds annotated tree crowns, which do not identify a place. Captions are made from
  measurements of the image.
- `naip_parcels`: a place inside a random blob, on a tile of a city without identities, 96 x 96 pixels. The mask is the
  blob: neither the background nor the shape of the blob tells the identity.

Training and test identities come from different cities. The test split is Claremont. The sets named after Santa Monica
hold a second test city, to check findings on data that were not used for any choice.
"""

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from examples.optional import import_library
from examples.prepare.aerial.crops import crop_parcel, crop_place, move_points
from examples.prepare.aerial.measures import caption, find_crowns, find_vegetation, measure
from examples.prepare.aerial.source import (
    CHECK_CITY,
    COMMIT,
    SOURCE,
    TEST_CITY,
    TRAIN_CITIES,
    YEARS,
    list_backgrounds,
    list_tiles,
    opencv,
    read_tile,
    read_trees,
)
from stmi_layers.training.files import write_folder, write_text

# Largest number of identities of a city in naip_parcels.
PARCELS_PER_CITY = 50
PROVENANCE = "naip_provenance.csv"
COLUMNS = ("set", "split", "name", "city", "year", "tile", "source_file", "annotated_trees_in_crop", "mask_fraction")
CREDIT = f"""\
Made by `python -m examples.prepare.aerial` of {SOURCE}, published at commit {COMMIT}.
Licence: Creative Commons Attribution 4.0 International (CC BY 4.0). Credit: Ventura et al. 2024, "Individual Tree
Detection in Large-Scale Urban Environments using High-Resolution Multispectral Imagery", Int. J. Applied Earth
Observation and Geoinformation 130, 103848; imagery: USDA NAIP 2016, 2018, 2020.
Changes were made: images are turned, scaled, cropped and compressed again, and in naip_parcels composed of two tiles;
masks and captions are derived from the annotations and from the images.
"""


class Shot(NamedTuple):
    """One photograph of an identity.

    Attributes:
        identity: number from 1 on, counted through all cities of a kind of set.
        city: city of the tile.
        number: number of the tile.
        year: year of the photograph.
        file: file of the tile.
    """

    identity: int
    city: str
    number: int
    year: int
    file: Path

    @property
    def name(self) -> str:
        """Stem of the files made from the photograph."""
        return f"{self.identity:06d}_cam{YEARS.index(self.year) + 1}_0_00"


class Picture(NamedTuple):
    """Content of the files of a photograph: image (height, width, 4), mask, and for places caption and tree count."""

    image: np.ndarray
    mask: np.ndarray
    text: str = ""
    trees: int | None = None


def build(clone: Path, out: Path) -> dict[str, int]:
    """Write all sets, `naip_provenance.csv` and `SOURCE.txt`; return the identities by set and split.

    Raises:
        FileExistsError: when `out` holds anything already.
        FileNotFoundError: when the clone lacks tiles.
        ImportError: when a library of the extra `aerial` is missing.
    """
    refuse_filled(out)
    for library in ("cv2", "tifffile", "imagecodecs"):
        import_library(library, "aerial")
    backgrounds = list_backgrounds(clone)
    counts: dict[str, int] = {}
    rows: list[list[object]] = []
    with write_folder(out) as unfinished:
        for kind, most in (("naip_places", None), ("naip_parcels", PARCELS_PER_CITY)):
            for home, split, shots in list_shots(clone, kind, most):
                counts[f"{home}/{split}"] = len({shot.identity for shot in shots})
                rows += write_split(unfinished / home, split, shots, clone, backgrounds if most else None)
        write_provenance(unfinished, rows)
        write_text(unfinished / "SOURCE.txt", CREDIT)
    return counts


def list_shots(clone: Path, kind: str, most: int | None) -> Iterator[tuple[str, str, list[Shot]]]:
    """Yield the folder of a set, the name of a split and its photographs, for each split of a kind of set.

    Args:
        clone: folder of the clone of the source.
        kind: name of the set.
        most: largest number of identities of a city, by rising tile numbers; None for all.
    """
    identity = 0
    for home, split, cities in (
        (kind, "train", TRAIN_CITIES),
        (f"{kind}_{CHECK_CITY}", "test", (CHECK_CITY,)),
        (kind, "test", (TEST_CITY,)),
    ):
        shots: list[Shot] = []
        for city in cities:
            for number, files in list(list_tiles(clone, city).items())[:most]:
                identity += 1
                shots += [Shot(identity, city, number, year, files[year]) for year in YEARS]
        yield home, f"train_{identity}" if split == "train" else split, shots


def write_split(
    folder: Path, split: str, shots: list[Shot], clone: Path, backgrounds: dict[int, list[Path]] | None
) -> list[list[object]]:
    """Write images, masks and captions; return a row of the provenance per photograph.

    Args:
        folder: folder of the set.
        split: name of the split.
        shots: photographs of the split.
        clone: folder of the clone of the source.
        backgrounds: background tiles of parcels, by year; None for places.
    """
    rows, texts = [], []
    tiles = {year: [read_tile(file) for file in files] for year, files in (backgrounds or {}).items()}
    for shot in shots:
        tile = read_tile(shot.file)
        made = make_parcel(tile, shot, tiles[shot.year]) if tiles else make_place(tile, shot, clone)
        save(folder / split, shot.name, made)
        trees = "" if made.trees is None else made.trees
        origin = (shot.city, shot.year, shot.number, shot.file.name)
        rows.append([folder.name, split, shot.name, *origin, trees, f"{made.mask.mean():.3f}"])
        texts += [{"item": f"{shot.name}.jpg", "description": made.text}] if made.text else []
    write_captions(folder, split, texts)
    return rows


def refuse_filled(out: Path) -> None:
    """Raise FileExistsError when an output folder holds anything already."""
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} must not exist or be empty; give another folder or remove it")


def write_provenance(folder: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write `naip_provenance.csv`, whose rows have the order of `COLUMNS`."""
    lines = io.StringIO(newline="")
    csv.writer(lines).writerows([COLUMNS, *rows])
    write_text(folder / PROVENANCE, lines.getvalue())


def write_captions(folder: Path, split: str, texts: list[dict[str, str]]) -> None:
    """Write the captions of a split of a set, if it has any."""
    if texts:
        write_text(folder / "text" / f"{split.split('_')[0]}.json", json.dumps(texts, indent=0))


def make_place(tile: np.ndarray, shot: Shot, clone: Path) -> Picture:
    """Make the crop of a place, its mask of tree crowns and its caption."""
    crop, matrix = crop_place(tile, shot.city, shot.number, shot.year)
    trees = move_points(read_trees(clone, shot.file), matrix)
    vegetation = find_vegetation(crop)
    text = caption(measure(crop, vegetation, len(trees)))
    return Picture(crop, find_crowns(vegetation, trees), text, len(trees))


def make_parcel(tile: np.ndarray, shot: Shot, backgrounds: list[np.ndarray]) -> Picture:
    """Make a parcel and its mask."""
    return Picture(*crop_parcel(tile, backgrounds, shot.city, shot.number, shot.year))


def save(folder: Path, name: str, made: Picture) -> None:
    """Write RGB and near infrared as JPEG, and the mask as PNG with one bit per pixel."""
    cv2 = opencv()
    jpeg, png = [cv2.IMWRITE_JPEG_QUALITY, 85], [cv2.IMWRITE_PNG_BILEVEL, 1, cv2.IMWRITE_PNG_COMPRESSION, 9]
    for place, image, options in (
        (folder / "RGB" / f"{name}.jpg", made.image[..., 2::-1], jpeg),  # OpenCV writes blue first
        (folder / "NI" / f"{name}.jpg", made.image[..., 3], jpeg),
        (folder / "mask" / f"{name}.png", made.mask.astype(np.uint8) * 255, png),
    ):
        place.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(place), np.ascontiguousarray(image), options):
            raise ValueError(f"{place} cannot be written")
