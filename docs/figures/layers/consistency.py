"""Background consistency, and centres that move with the batches."""

import math
from itertools import pairwise

import torch

from docs.figures.layers.drawing import (
    BANDS,
    BLUE,
    EDGE,
    GREEN,
    PAPER,
    RED,
    SOFT,
    circle,
    code,
    path,
    picture,
    rect,
    text,
)
from stmi_layers import background_consistency, move_centres

RGB_PATCHES, NIR_PATCHES = [3, 5, 2, 4, 9, 3, 1, 2, 2], [3, 1, 2, 4, 2, 3, 2, 2, 0]
PATCHES = torch.tensor([[RGB_PATCHES, NIR_PATCHES]]).float()[..., None]
KEEP = torch.tensor([[False, True, False, False, True, False, False, False, False]])
# Features of one identity in three batches, as angles in degrees.
BATCHES = ((4.0, 22.0), (36.0, 62.0), (70.0, 86.0))


def loss() -> float:
    return background_consistency(PATCHES, KEEP).item()


def centres() -> list[list[float]]:
    """Where the centre stands after each batch."""
    place, seen, found = torch.zeros(1, 1, 2), torch.zeros(1, 1, dtype=torch.bool), []
    for batch in BATCHES:
        features = torch.tensor([[_point(angle)] for angle in batch])
        place, seen = move_centres(place, seen, features, torch.zeros(len(batch), dtype=torch.long), rate=0.5)
        found.append(place[0, 0].tolist())
    return found


def draw() -> str:
    parts = [
        text(14, 28, "Background consistency", anchor="start", bold=True),
        *_patches(14, RGB_PATCHES, 0),
        *_patches(132, NIR_PATCHES, 1),
        *_squares(250),
        code(180, 166, f"loss = {loss() * 9:g} / 9 patches = {loss():.2f}"),
        text(14, 204, "Moving centre of one identity", anchor="start", bold=True),
        *_circle(120, 396, 160),
        *_legend(),
    ]
    return picture(
        424,
        "Background agrees across modalities, and features follow a centre",
        "Nine patches of RGB and of near infrared; two are kept, and the squared differences of the others are the "
        "loss. Below, a centre inside the unit circle that moves towards the mean of the features of each batch.",
        *parts,
    )


def _patches(left: float, values: list[int], band: int) -> list[str]:
    parts = []
    for index, value in enumerate(values):
        y, x = divmod(index, 3)
        kept = KEEP[0, index].item()
        box = (left + 30 * x, 44 + 30 * y, 28, 28)
        parts.append(
            rect(*box, fill="none" if kept else PAPER, stroke=GREEN if kept else BANDS[band], thick=2 if kept else 1)
        )
        parts.append(text(left + 14 + 30 * x, 63 + 30 * y, "" if kept else f"{value}"))
    return [*parts, text(left + 44, 148, ("RGB", "NIR")[band], size=12, fill=SOFT)]


def _squares(left: float) -> list[str]:
    parts = []
    for index, (one, other) in enumerate(zip(RGB_PATCHES, NIR_PATCHES, strict=True)):
        y, x = divmod(index, 3)
        if not KEEP[0, index]:
            box = (left + 30 * x, 44 + 30 * y, 28, 28)
            parts += [rect(*box, fill=PAPER), rect(*box, fill=BLUE, opacity=0.15 * (one - other) ** 2)]
            parts.append(text(left + 14 + 30 * x, 63 + 30 * y, f"{(one - other) ** 2}"))
    return [*parts, text(left + 44, 148, "squares", size=12, fill=SOFT)]


def _circle(left: float, bottom: float, size: float) -> list[str]:
    def place(point: list[float]) -> tuple[float, float]:
        return left - 100 + size * point[0], bottom - size * point[1]

    arc = [place(_point(angle)) for angle in range(0, 91, 2)]
    parts = [path(arc, stroke=EDGE)]
    for batch, angles in enumerate(BATCHES):
        for angle in angles:
            x, y = place(_point(angle))
            parts += [
                circle(x, y, 8, fill=PAPER, stroke=BANDS[batch], thick=2),
                text(x, y + 4.5, f"{batch + 1}", size=12),
            ]
    places = [place(point) for point in centres()]
    parts += [path([start, stop], head="red", stroke=RED) for start, stop in pairwise(places)]
    parts += [circle(*at, 4, fill=RED) for at in places]
    return parts


def _legend() -> list[str]:
    parts = [circle(236, 250, 8, fill=PAPER, stroke=BANDS[0], thick=2), text(236, 254.5, "1", size=12)]
    parts += [
        text(252, 255, "features of", size=12, anchor="start"),
        text(252, 271, "batch 1", size=12, anchor="start"),
    ]
    parts += [circle(236, 300, 4, fill=RED), text(252, 304, "the centre", size=12, anchor="start")]
    parts += [text(252, 320, "after each", size=12, anchor="start"), text(252, 336, "batch", size=12, anchor="start")]
    return parts


def _point(angle: float) -> list[float]:
    return [math.cos(math.radians(angle)), math.sin(math.radians(angle))]
