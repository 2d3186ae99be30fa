"""Gram alignment: the area that two bands of one sample span, and that of exchanged samples."""

import math

import torch

from docs.figures.layers.drawing import BANDS, EDGE, GREEN, PAPER, RED, SOFT, path, picture, rect, text
from stmi_layers import gram_alignment_loss, gram_volume

# Unit vectors of two samples in RGB and NIR, by their angles in degrees.
ANGLES = torch.tensor([[80.0, 62.0], [12.0, 28.0]])
TEMPERATURE = 0.3


def features() -> torch.Tensor:
    radians = torch.deg2rad(ANGLES)
    return torch.stack([radians.cos(), radians.sin()], dim=-1)


def volumes() -> list[list[float]]:
    return gram_volume(features()).tolist()


def draw() -> str:
    parts = []
    for row, column in ((0, 0), (0, 1), (1, 0), (1, 1)):
        left, top = 16 + 168 * column, 34 + 150 * row
        own = row == column
        first, second = (angles[sample] for angles, sample in zip(ANGLES.T.tolist(), (row, column), strict=True))
        volume, colour = volumes()[row][column], GREEN if own else RED
        parts += [rect(left, top, 160, 142, fill=PAPER, stroke=EDGE)]
        parts += _parallelogram(left + 18, top + 118, first, second, colour)
        parts += [text(left + 150, top + 20, f"{volume:.2f}", anchor="end", fill=colour, bold=True)]
    loss = gram_alignment_loss(features(), TEMPERATURE).item()
    parts += [
        text(16, 24, "RGB of a sample (rows), NIR of a sample (columns)", anchor="start"),
        text(16, 354, "Within a sample the volume is to be small,", anchor="start", fill=GREEN, bold=True),
        text(16, 372, "across samples large", anchor="start", fill=RED, bold=True),
        text(16, 392, f"loss at temperature {TEMPERATURE}: {loss:.2f}", anchor="start", fill=SOFT),
    ]
    return picture(
        406,
        "The features of one sample span a small volume, those of different samples a large one",
        "Four parallelograms in a table, of the RGB feature of one of two samples and the NIR feature of one of two "
        "samples. On the diagonal both are of the same sample and the areas are small; elsewhere they are large.",
        *parts,
    )


def _parallelogram(x: float, y: float, first: float, second: float, colour: str) -> list[str]:
    tips = [(60 * math.cos(math.radians(angle)), -60 * math.sin(math.radians(angle))) for angle in (first, second)]
    (ax, ay), (bx, by) = tips
    corners = [(x, y), (x + ax, y + ay), (x + ax + bx, y + ay + by), (x + bx, y + by)]
    arrows = [
        path([(x, y), (x + tx, y + ty)], stroke=band, thick=3) for (tx, ty), band in zip(tips, BANDS, strict=False)
    ]
    return [path(corners, fill=colour, stroke=colour, opacity=0.35), *arrows]
