"""Crops of tiles, each under its own random similarity transform, as a whole or inside a blob.

Without the transform, correlation of raw pixels would be enough to recognise a place. Random draws depend only on the
names of city, tile and year, so that a crop does not depend on other crops.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from examples.prepare.aerial.source import opencv

SIDE = 128
# Side of a parcel in pixels; it is drawn at SIDE and reduced.
PARCEL_SIDE = 96
TILE_CENTRE, CROP_CENTRE = 127.5, SIDE / 2 - 0.5


class Place(NamedTuple):
    """A crop of a tile, bytes (128, 128, 4), and the matrix (2, 3) that maps pixels of the tile to the crop."""

    crop: np.ndarray
    matrix: np.ndarray


class Parcel(NamedTuple):
    """A place inside a blob, bytes (96, 96, 4), and the blob, Bool (96, 96)."""

    crop: np.ndarray
    mask: np.ndarray


def generator(*names: object) -> np.random.Generator:
    """Return a random generator that depends only on the names.

    >>> generator("claremont", 3, 2016, "v1").integers(1000, size=3).tolist()
    [911, 450, 652]
    """
    digest = hashlib.sha256("|".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def crop_place(tile: np.ndarray, city: str, number: int, year: int) -> Place:
    """Make a crop turned by up to 20 degrees, scaled by up to a tenth and moved by up to 12 pixels."""
    random = generator(city, number, year, "v1")
    angle, scale = random.uniform(-20, 20), 1 / np.exp(random.uniform(-0.1, 0.1))
    centre = TILE_CENTRE + random.uniform(-12, 12, 2)
    matrix = similarity(centre, angle, scale, CROP_CENTRE - centre)
    return Place(warp(tile, matrix), matrix)


def crop_parcel(tile: np.ndarray, backgrounds: list[np.ndarray], city: str, number: int, year: int) -> Parcel:
    """Make a crop shown through a blob, in front of a turned and moved tile of another city.

    Args:
        tile: tile of the identity.
        backgrounds: tiles to choose the background from.
        city: city of the tile; city, number and year seed the random draws.
        number: number of the tile.
        year: year of the photograph.
    """
    random = generator(city, number, year, "parcel1")
    blob, (right, down) = draw_blob(random)
    angle, scale = random.uniform(-20, 20), 1 / np.exp(random.uniform(-0.1, 0.1))
    centre = np.full(2, TILE_CENTRE)
    step = [CROP_CENTRE + offset - TILE_CENTRE + random.uniform(-3, 3) for offset in (right, down)]
    front = warp(tile, similarity(centre, angle, scale, np.array(step)))
    other = backgrounds[random.integers(len(backgrounds))]
    matrix = similarity(centre, random.uniform(-180, 180), 1.0, CROP_CENTRE - TILE_CENTRE + random.uniform(-30, 30, 2))
    whole = (front * blob[..., None] + warp(other, matrix) * (1 - blob[..., None])).round().astype(np.uint8)
    return Parcel(reduced(whole), reduced(blob) >= 0.5)


def draw_blob(random: np.random.Generator) -> tuple[np.ndarray, tuple[float, float]]:
    """Draw a filled smooth outline: coverage (128, 128) in [0, 1], and the offset of its centre from the crop's centre.

    The radius is 40 pixels, up to a tenth more or less, with waves of two to five periods around the outline.
    """
    angle = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    radius = np.ones_like(angle)
    for waves in (2, 3, 4, 5):
        height = random.uniform(0, 0.16)
        radius += height * np.cos(waves * angle + random.uniform(0, 2 * np.pi)) / np.sqrt(waves / 2)
    radius = radius / radius.mean() * 40 * np.exp(random.uniform(-0.1, 0.1))
    x, y = CROP_CENTRE + random.uniform(-14, 14, 2)
    outline = np.stack([(x + radius * np.cos(angle)) * 4, (y + radius * np.sin(angle)) * 4], 1)
    filled = np.zeros((4 * SIDE, 4 * SIDE), np.uint8)
    opencv().fillPoly(filled, [outline.round().astype(np.int32)], 255)
    coverage = opencv().resize(filled, (SIDE, SIDE), interpolation=opencv().INTER_AREA).astype(np.float32) / 255
    return coverage, (x - CROP_CENTRE, y - CROP_CENTRE)


def similarity(centre: np.ndarray, angle: float, scale: float, step: np.ndarray) -> np.ndarray:
    """Return the matrix (2, 3) that turns and scales around a point and then moves by `step`."""
    matrix = opencv().getRotationMatrix2D(tuple(centre.tolist()), angle, scale)
    matrix[:, 2] += step
    return matrix


def warp(tile: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Warp a tile into a crop by a matrix; pixels beyond the border of the tile are mirrored."""
    cv2 = opencv()
    return cv2.warpAffine(tile, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def reduced(image: np.ndarray) -> np.ndarray:
    """Reduce an image to the size of a parcel."""
    return opencv().resize(image, (PARCEL_SIDE, PARCEL_SIDE), interpolation=opencv().INTER_AREA)


def move_points(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Map points of a tile to pixels of its crop; points outside the crop are left out.

    >>> move_points(np.array([[100.0, 90.0], [10.0, 90.0]]), np.array([[1.0, 0, -64], [0, 1.0, -64]])).tolist()
    [[36.0, 26.0]]
    """
    moved = points @ matrix[:, :2].T + matrix[:, 2]
    return moved[((moved >= 0) & (moved < SIDE)).all(1)]
