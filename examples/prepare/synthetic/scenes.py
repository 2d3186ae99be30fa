"""Scenes of the synthetic set: flat polygons that each carry a material, painted once for all sensors.

Every function is deterministic in its arguments.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from examples.prepare.synthetic.bodies import (
    HEAT_LEVELS,
    HEATS,
    HUES,
    INK_ALBEDO,
    INKS,
    SURFACES,
    TAG_SIDE,
    Body,
    Material,
    Polygon,
    Tag,
)

Array = NDArray[np.floating]

BANDS = ("RGB", "NI", "TI")
LIGHTS = ("day", "night", "glare")
SUPERSAMPLING = 2
MARGIN = 8  # pixels painted around the frame, for sensors displaced by parallax


@dataclass(frozen=True)
class Pose:
    """Pose of the unit box in the frame: lengths in pixels, rotation in radians; a mirrored pose faces left."""

    centre: tuple[float, float]
    width: float
    height: float
    rotation: float = 0.0
    shear: float = 0.0
    mirrored: bool = False

    @cached_property
    def _matrix(self) -> Array:
        cos, sin = np.cos(self.rotation), np.sin(self.rotation)
        scale = np.diag([-self.width if self.mirrored else self.width, self.height])
        return np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, self.shear], [0.0, 1.0]]) @ scale

    def place(self, points: Polygon | Array) -> Array:
        """Map points of the unit box to pixels of the frame, keeping every area's share of the box."""
        return (np.asarray(points) - 0.5) @ self._matrix.T + self.centre


@dataclass(frozen=True)
class Figure:
    """A body in a pose, with tags at points of its unit box; `activity` in [0, 1] sets how warm it is."""

    body: Body
    pose: Pose
    tags: tuple[tuple[tuple[float, float], Tag], ...]
    activity: float = 0.5

    def tag_pose(self, anchor: tuple[float, float]) -> Pose:
        """Return the square that a tag at `anchor` covers."""
        side = TAG_SIDE * (self.pose.width * self.pose.height) ** 0.5
        x, y = self.pose.place((anchor,))[0]
        return Pose((float(x), float(y)), side, side, self.pose.rotation)


@dataclass(frozen=True)
class View:
    """Content of one item: the figure, its surroundings, the light and the displacement of the sensors.

    Attributes:
        size: height and width of the frame in pixels.
        bystanders: figures of other identities in the background.
        posters: tags of other identities on background surfaces.
        place: seed and number of the place in the background.
        shift: displacement of the place in pixels, which differs between photographs.
        light: one of LIGHTS.
        air: temperature in kelvin.
        parallax: per band, displacement (x, y) of the figure in whole pixels; the background moves half as far.
        key: seed of clutter, surface grain and sensor noise.
    """

    size: tuple[int, int]
    figure: Figure
    bystanders: tuple[Figure, ...]
    posters: tuple[tuple[Pose, Tag], ...]
    place: tuple[int, int]
    shift: tuple[float, float]
    light: str
    air: float
    parallax: dict[str, tuple[int, int]]
    key: int


def _box(left: float, top: float, right: float, bottom: float, lean: float = 0.0) -> Polygon:
    return ((left + lean, top), (right + lean, top), (right, bottom), (left, bottom))


class Layer(NamedTuple):
    """Painted polygons: an index into `materials` per subpixel, 0 if not painted."""

    labels: NDArray[np.int32]
    materials: Array


class _Painter:
    """Painter of polygons, back to front."""

    def __init__(self, size: tuple[int, int]) -> None:
        height, width = ((side + 2 * MARGIN) * SUPERSAMPLING for side in size)
        self.image = Image.new("I", (width, height))
        self.draw = ImageDraw.Draw(self.image)
        self.materials = [Material(0, 0, 0, 0, 0, 1)]

    def paint(self, polygon: Polygon | Array, material: Material) -> None:
        self.materials.append(material)
        corners = ((np.asarray(polygon) + MARGIN) * SUPERSAMPLING).ravel().tolist()
        self.draw.polygon(corners, fill=len(self.materials) - 1)

    def paint_tag(self, pose: Pose, tag: Tag) -> None:
        red, green, blue = tuple(HUES.values())[tag.hue]
        ink, heat = "".join(tuple(INKS.values())[tag.ink]), "".join(tuple(HEATS.values())[tag.heat])
        for index, (inked, heated) in enumerate(zip(ink, heat, strict=True)):
            x, y = index % 3 / 3, index // 3 / 3
            cell = pose.place(_box(x, y, x + 1 / 3, y + 1 / 3))
            self.paint(cell, Material(red, green, blue, INK_ALBEDO[inked], *HEAT_LEVELS[heated]))

    def paint_figure(self, figure: Figure) -> None:
        for role, polygon in figure.body.parts:
            surface = figure.body.paint if role in ("paint", "engine") else SURFACES[role]
            warmth = surface.warmth + (22 if role == "engine" else 0)
            self.paint(figure.pose.place(polygon), surface._replace(warmth=warmth * (0.3 + 0.7 * figure.activity)))
        for anchor, tag in figure.tags:
            self.paint_tag(figure.tag_pose(anchor), tag)

    def finish(self) -> Layer:
        return Layer(np.asarray(self.image), np.asarray(self.materials, dtype=np.float32))


def _random_material(rng: Generator, grey: tuple[float, float] = (0.1, 0.55)) -> Material:
    red, green, blue = np.clip(rng.uniform(*grey) * (1 + rng.normal(0, 0.18, 3)), 0.03, 0.8).tolist()
    return Material(red, green, blue, rng.uniform(0.08, 0.7), rng.uniform(-6, 4), rng.uniform(0.86, 0.96))


def _paint_place(painter: _Painter, view: View) -> None:
    """Paint sky, ground and buildings of the place, then clutter of this view, in fractions of the frame."""
    rng = np.random.default_rng((101, *view.place))
    horizon = rng.uniform(0.4, 0.6)
    polygons = [
        (_box(-1, -1, 2, 2), _random_material(rng, (0.3, 0.7))),
        (_box(-1, horizon, 2, 2), _random_material(rng)),
    ]
    for left in np.arange(-0.4, 1.4, 0.3) + rng.uniform(-0.1, 0.1, 6):
        right, top = left + rng.uniform(0.15, 0.4), horizon - rng.uniform(0.1, 0.5)
        polygons.append((_box(left, top, right, horizon), _random_material(rng)))
        pane = _random_material(rng)
        for x in np.arange(left + 0.04, right - 0.06, 0.1):
            polygons.append((_box(x, top + 0.05, x + 0.05, top + 0.13), pane))
    for y in rng.uniform(horizon, 1.0, 2):
        polygons.append((_box(-1, y, 2, y + rng.uniform(0.02, 0.08)), _random_material(rng)))
    rng = np.random.default_rng((102, view.key))
    for x, y, width, height in rng.uniform((-0.1, 0.1, 0.04, 0.06), (1.0, 0.9, 0.2, 0.3), (6, 4)):
        polygons.append((_box(x, y, x + width, y + height, rng.uniform(-0.05, 0.05)), _random_material(rng)))
    for polygon, material in polygons:
        painter.paint(np.asarray(polygon) * view.size[::-1] + view.shift, material)


def paint(view: View) -> tuple[Layer, Layer]:
    """Paint the background and the figure of a view."""
    behind, front = _Painter(view.size), _Painter(view.size)
    _paint_place(behind, view)
    for bystander in view.bystanders:
        behind.paint_figure(bystander)
    for pose, tag in view.posters:
        behind.paint_tag(pose, tag)
    pose, turns = view.figure.pose, np.linspace(0, 2 * np.pi, 24, endpoint=False)
    shadow = np.stack([0.5 + 0.54 * np.cos(turns), 0.98 + 0.05 * pose.width / pose.height * np.sin(turns)], axis=1)
    behind.paint(pose.place(shadow), SURFACES["shadow"])
    front.paint_figure(view.figure)
    return behind.finish(), front.finish()


def crop(labels: NDArray[np.int32], size: tuple[int, int], displacement: tuple[float, float]) -> NDArray[np.int32]:
    """Return the part of a painted layer that a displaced sensor sees."""
    left, top = (round((MARGIN - step) * SUPERSAMPLING) for step in displacement)
    return labels[top : top + size[0] * SUPERSAMPLING, left : left + size[1] * SUPERSAMPLING]


def downsample(field: Array) -> Array:
    """Average over the supersampled pixels."""
    height, width = (side // SUPERSAMPLING for side in field.shape[:2])
    return field.reshape(height, SUPERSAMPLING, width, SUPERSAMPLING, *field.shape[2:]).mean((1, 3))


def figure_mask(view: View, front: Layer, band: str) -> NDArray[np.bool_]:
    """Return the exact silhouette in the frame of a sensor: True where the figure covers at least half of a pixel."""
    covered = crop(front.labels, view.size, view.parallax[band]) > 0
    return downsample(covered.astype(np.float32)) >= 0.5


@cache
def body_fill(body: Body) -> float:
    """Compute the share of its unit box that a silhouette covers."""
    painter = _Painter((200, 200))
    painter.paint_figure(Figure(body, Pose((100, 100), 180, 180), ()))
    return float((painter.finish().labels > 0).sum() / (180 * SUPERSAMPLING) ** 2)
