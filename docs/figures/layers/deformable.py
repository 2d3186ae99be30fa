"""Deformable sampling: where the samples of a 16 x 8 grid stand, how far they move, and where the release put them."""

import torch
from torch import Tensor

from docs.figures.layers.drawing import BLUE, EDGE, GREEN, PAPER, RED, SOFT, circle, path, picture, rect, text
from stmi_layers import deformable_positions, reference_positions

GRID, POINTS, CELL = (16, 8), (4, 2), 17
REACH = (5.0, 7.0)  # of the default offset range


def moved(row: float, column: float) -> tuple[Tensor, Tensor]:
    """Positions without and with an offset of this share of the reach, (rows columns 2)."""
    reference = reference_positions(GRID, POINTS)
    offsets = (torch.tensor([row, column]) * torch.tensor(REACH)).expand(1, *POINTS, 2)
    return reference, deformable_positions(offsets, reference, GRID, reach=REACH)[0]


def released() -> Tensor:
    """Positions of the research code without an offset; the last ones are cut off at the border."""
    reference = reference_positions(GRID, POINTS, released=True)
    return deformable_positions(torch.zeros(1, *POINTS, 2), reference, GRID)[0]


def draw() -> str:
    parts = []
    for left, title in ((16, "here"), (196, "research code")):
        parts.append(text(left + 68, 28, title, bold=True))
        parts += [
            rect(left + CELL * column, 38 + CELL * row, CELL - 1, CELL - 1, fill=PAPER, stroke=EDGE)
            for row in range(GRID[0])
            for column in range(GRID[1])
        ]
    reference, positions = moved(0.5, 0.6)
    for start, stop in zip(reference.flatten(0, 1).tolist(), positions.flatten(0, 1).tolist(), strict=True):
        parts.append(path([_place(16, start), _place(16, stop)], stroke=GREEN, thick=2, head="green"))
        parts.append(circle(*_place(16, start), 5, fill=BLUE))
    parts += [circle(*_place(196, place), 5, fill=RED) for place in released().flatten(0, 1).tolist()]
    parts += [
        text(16, 336, "Every point stands in the centre of its window", anchor="start", fill=SOFT),
        text(16, 354, "and moves at most to the border.", anchor="start", fill=SOFT),
        text(16, 376, "In the research code the last row and column", anchor="start", fill=RED),
        text(16, 394, "are cut off, and the left columns out of reach.", anchor="start", fill=RED),
    ]
    return picture(
        410,
        "Samples start in the centres of their windows and stay on the grid",
        "Two grids of 16 by 8 tokens. In the left one, eight points stand in the centres of windows of four by four. "
        "Arrows show an offset that moves all of them down and right without leaving the grid. In the right one, the "
        "points of the research code stand further down and right, the last ones on the border.",
        *parts,
    )


def _place(left: float, position: list[float]) -> tuple[float, float]:
    row, column = position
    return left + CELL * (column + 0.5), 38 + CELL * (row + 0.5)
