"""Parts of the synthetic set: silhouettes, surface materials and the marks that carry an identity.

Silhouettes and surfaces are shared by many identities; only the tags tell identities apart. The near-infrared albedo of
a surface is independent of its colour, as for real pigments.
"""

from typing import NamedTuple

import numpy as np

Polygon = tuple[tuple[float, float], ...]

TAG_SIDE = 0.22  # side of a tag, as a share of the geometric mean of a figure's width and height


class Material(NamedTuple):
    """Material of a flat surface; warmth is in kelvin above the air, all other values are in [0, 1]."""

    red: float
    green: float
    blue: float
    near_infrared: float
    warmth: float
    emissivity: float


class Body(NamedTuple):
    """A silhouette that many identities share: parts back to front, and the places where a tag can sit.

    Coordinates run over the unit box, y downwards, front at x = 1. `phrase` is the text of a caption, with the paint in
    braces.
    """

    name: str
    phrase: str
    paint_name: str
    paint: Material
    parts: tuple[tuple[str, Polygon], ...]
    anchors: tuple[tuple[float, float], ...]


class Tag(NamedTuple):
    """Small patch that carries an identity: indices into HUES, INKS and HEATS."""

    hue: int
    ink: int
    heat: int


HUES = {
    "red": (0.70, 0.05, 0.05),
    "yellow": (0.80, 0.65, 0.04),
    "green": (0.05, 0.50, 0.10),
    "blue": (0.05, 0.14, 0.70),
    "violet": (0.48, 0.08, 0.55),
}
# Rows of cells from top to bottom. Each is its own mirror image, so a mirrored view leaves the value readable.
INKS = {
    "bright": ("###", "###", "###"),
    "dark": ("...", "...", "..."),
    "rows": ("###", "...", "###"),
    "columns": ("#.#", "#.#", "#.#"),
    "frame": ("###", "#.#", "###"),
}
INK_ALBEDO = {"#": 0.85, ".": 0.06}
HEATS = {
    "hot": ("###", "###", "###"),
    "cold": ("...", "...", "..."),
    "hot above": ("###", "---", "..."),
    "hot below": ("...", "---", "###"),
    "hot core": ("...", ".#.", "..."),
}
# Warmth and emissivity: heated, body-warm, and bare metal, which looks cold because it reflects the sky.
HEAT_LEVELS = {"#": (30, 0.95), "-": (8, 0.92), ".": (-6, 0.45)}

SURFACES = {
    "glass": Material(0.07, 0.09, 0.11, 0.10, -1, 0.70),
    "tyre": Material(0.03, 0.03, 0.03, 0.05, 12, 0.95),
    "rim": Material(0.45, 0.46, 0.48, 0.50, 16, 0.80),
    "lamp": Material(0.90, 0.85, 0.65, 0.80, 6, 0.90),
    "chassis": Material(0.08, 0.08, 0.09, 0.15, 9, 0.93),
    "cargo": Material(0.62, 0.60, 0.55, 0.38, 6, 0.90),
    "skin": Material(0.60, 0.38, 0.28, 0.60, 18, 0.98),
    "hair": Material(0.07, 0.05, 0.03, 0.35, 7, 0.96),
    "trousers": Material(0.10, 0.12, 0.18, 0.45, 7, 0.94),
    "shoe": Material(0.05, 0.04, 0.04, 0.20, 3, 0.94),
    "bag": Material(0.22, 0.16, 0.08, 0.30, 1, 0.92),
    "shadow": Material(0.06, 0.06, 0.06, 0.06, -2, 0.93),
}


def _disc(x: float, y: float, radius_x: float, radius_y: float) -> Polygon:
    turns = np.linspace(0, 2 * np.pi, 20, endpoint=False)
    return tuple((x + radius_x * float(np.cos(t)), y + radius_y * float(np.sin(t))) for t in turns)


def _mirror(polygon: Polygon) -> Polygon:
    return tuple((1 - x, y) for x, y in polygon)


def _wheels(*places: float) -> tuple[tuple[str, Polygon], ...]:
    return tuple(
        part for x in places for part in (("tyre", _disc(x, 0.82, 0.1, 0.17)), ("rim", _disc(x, 0.82, 0.05, 0.085)))
    )


_NOSE = ("engine", ((0.80, 0.45), (0.97, 0.49), (1.0, 0.58), (1.0, 0.74), (0.80, 0.70)))
_LAMP = ("lamp", ((0.94, 0.47), (0.99, 0.52), (1.0, 0.6), (0.955, 0.58)))

# fmt: off
VEHICLES = (
    Body(
        "sedan", "{paint} sedan", "silver", Material(0.52, 0.53, 0.55, 0.30, 9, 0.90),
        (
            ("paint", ((0, 0.6), (0.02, 0.46), (0.2, 0.41), (0.33, 0.1), (0.67, 0.1), (0.82, 0.42), (0.96, 0.47),
                       (1, 0.6), (1, 0.84), (0, 0.84))),
            _NOSE, _LAMP,
            ("glass", ((0.37, 0.17), (0.49, 0.17), (0.49, 0.4), (0.27, 0.4))),
            ("glass", ((0.53, 0.17), (0.64, 0.17), (0.75, 0.4), (0.53, 0.4))),
            *_wheels(0.2, 0.79),
        ),
        ((0.11, 0.58), (0.5, 0.62), (0.89, 0.6), (0.5, 0.25)),
    ),
    Body(
        "van", "{paint} van", "white", Material(0.82, 0.82, 0.80, 0.55, 7, 0.92),
        (
            ("paint", ((0, 0.1), (0.04, 0.02), (0.7, 0.02), (0.87, 0.4), (1, 0.5), (1, 0.84), (0, 0.84))),
            _NOSE, _LAMP,
            ("glass", ((0.62, 0.1), (0.69, 0.1), (0.82, 0.4), (0.62, 0.4))),
            ("chassis", ((0, 0.78), (1, 0.78), (1, 0.85), (0, 0.85))),
            *_wheels(0.2, 0.79),
        ),
        ((0.13, 0.24), (0.44, 0.24), (0.5, 0.6), (0.89, 0.6)),
    ),
    Body(
        "pickup", "{paint} pickup", "black", Material(0.05, 0.05, 0.06, 0.42, 11, 0.94),
        (
            ("paint", ((0, 0.44), (0.42, 0.44), (0.48, 0.08), (0.72, 0.08), (0.83, 0.43), (0.97, 0.47), (1, 0.6),
                       (1, 0.84), (0, 0.84))),
            _NOSE, _LAMP,
            ("cargo", ((0, 0.42), (0.42, 0.42), (0.42, 0.48), (0, 0.48))),
            ("glass", ((0.52, 0.15), (0.69, 0.15), (0.77, 0.4), (0.5, 0.4))),
            *_wheels(0.21, 0.79),
        ),
        ((0.1, 0.6), (0.36, 0.62), (0.62, 0.62), (0.89, 0.6)),
    ),
    Body(
        "truck", "{paint} truck", "sand", Material(0.50, 0.38, 0.22, 0.18, 9, 0.91),
        (
            ("cargo", ((0, 0), (0.61, 0), (0.61, 0.74), (0, 0.74))),
            ("paint", ((0.65, 0.22), (0.86, 0.22), (0.97, 0.5), (1, 0.58), (1, 0.84), (0.65, 0.84))),
            _NOSE, _LAMP,
            ("chassis", ((0, 0.74), (0.66, 0.74), (0.66, 0.84), (0, 0.84))),
            ("glass", ((0.72, 0.28), (0.84, 0.28), (0.93, 0.48), (0.72, 0.48))),
            *_wheels(0.16, 0.4, 0.83),
        ),
        ((0.12, 0.2), (0.46, 0.2), (0.28, 0.54), (0.84, 0.62)),
    ),
)

_HEAD = (
    ("skin", ((0.43, 0.12), (0.57, 0.12), (0.58, 0.19), (0.42, 0.19))),
    ("skin", _disc(0.5, 0.085, 0.15, 0.075)),
    ("hair", ((0.35, 0.08), (0.38, 0.02), (0.5, 0), (0.62, 0.02), (0.65, 0.08), (0.5, 0.05))),
)
_ARM = ((0.3, 0.18), (0.16, 0.22), (0.05, 0.5), (0.19, 0.53), (0.3, 0.32))
_HAND = _disc(0.11, 0.535, 0.08, 0.03)
_SHIRT = ((0.3, 0.17), (0.7, 0.17), (0.77, 0.25), (0.76, 0.53), (0.24, 0.53), (0.23, 0.25))
_LEG = ((0.24, 0.52), (0.5, 0.52), (0.47, 0.95), (0.27, 0.95))
_SHOE = ((0.26, 0.94), (0.47, 0.94), (0.47, 1), (0.18, 1))
_STRIDE = ((0.3, 0.52), (0.56, 0.52), (0.3, 0.95), (0.08, 0.95))
_STRIDE_SHOE = ((0.06, 0.94), (0.3, 0.94), (0.36, 1), (0.04, 1))


def _both(role: str, polygon: Polygon) -> tuple[tuple[str, Polygon], ...]:
    return ((role, polygon), (role, _mirror(polygon)))


_ARMS = (*_both("skin", _HAND), *_both("paint", _ARM))
PERSONS = (
    Body(
        "shirt", "person in a {paint} shirt", "grey", Material(0.30, 0.30, 0.31, 0.30, 8, 0.94),
        (*_both("trousers", _LEG), *_both("shoe", _SHOE), *_ARMS, ("paint", _SHIRT), *_HEAD),
        ((0.42, 0.25), (0.58, 0.45), (0.35, 0.7), (0.66, 0.71)),
    ),
    Body(
        "coat", "person in a {paint} coat", "beige", Material(0.55, 0.45, 0.32, 0.55, 5, 0.93),
        (*_both("trousers", _LEG), *_both("shoe", _SHOE), *_ARMS,
         ("paint", ((0.3, 0.17), (0.7, 0.17), (0.77, 0.25), (0.84, 0.78), (0.16, 0.78), (0.23, 0.25))), *_HEAD),
        ((0.42, 0.25), (0.68, 0.44), (0.34, 0.5), (0.58, 0.69)),
    ),
    Body(
        "backpack", "person with a backpack and a {paint} jacket", "black", Material(0.04, 0.04, 0.05, 0.42, 7, 0.95),
        (("bag", ((0.02, 0.2), (0.28, 0.17), (0.3, 0.46), (0.04, 0.48))), *_both("trousers", _STRIDE),
         *_both("shoe", _STRIDE_SHOE), *_both("paint", _SHIRT), ("paint", _mirror(_ARM)),
         ("skin", _mirror(_HAND)), *_HEAD),
        ((0.2, 0.33), (0.6, 0.25), (0.58, 0.45), (0.3, 0.7)),
    ),
    Body(
        "dress", "person in a {paint} dress", "white", Material(0.80, 0.80, 0.78, 0.70, 8, 0.95),
        (*_both("skin", _LEG), *_both("shoe", _SHOE), *_both("skin", _HAND), *_both("skin", _ARM),
         ("paint", ((0.33, 0.17), (0.67, 0.17), (0.7, 0.4), (0.92, 0.68), (0.08, 0.68), (0.3, 0.4))), *_HEAD),
        ((0.5, 0.23), (0.5, 0.4), (0.26, 0.59), (0.74, 0.59)),
    ),
)
# fmt: on
BODIES = {"vehicle": VEHICLES, "person": PERSONS}
SOME_BODY = {"vehicle": "{paint} vehicle", "person": "person in {paint} clothes"}
ASPECT = {"vehicle": 1.7, "person": 0.42}
