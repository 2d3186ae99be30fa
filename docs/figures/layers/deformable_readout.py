"""Deformable readout: where the samples lie before and after a network moved them."""

from typing import Literal

import torch

from docs.figures.layers.drawing import (
    EDGE,
    GREEN,
    LINE,
    NIR,
    PAPER,
    RED,
    SOFT,
    circle,
    lines,
    path,
    picture,
    rect,
    text,
)
from stmi_layers import DeformableReadout

GRID = (16, 8)
CELL = 15.0
# Shares of the object per patch: a person, not in the middle.
OBJECT = torch.zeros(GRID)
OBJECT[3:5, 4:6], OBJECT[5:9, 3:7], OBJECT[9:14, 4:6] = 1, 1, 1


def positions(*, moved: bool, reference: Literal["centred", "shifted"] = "centred") -> torch.Tensor:
    """Rows and columns (rows, columns, 2) of the samples, with a network by hand that pulls towards the object."""
    readout = DeformableReadout(4, num_modalities=1, grid=GRID, reference=reference, max_offset=(2.0, 2.0))
    state = {name: torch.zeros_like(value) for name, value in readout.state_dict().items()}
    ramp = (torch.arange(4) - 1.5).expand(4, 4)
    state["networks.0.project.weight"][:, 0] = 4.0  # the first feature says how much object a patch shows
    state["networks.0.window.weight"][:, 0] = torch.stack([ramp.T, -ramp.T, ramp, -ramp])
    if moved:
        state["networks.0.point.weight"] = 0.04 * torch.tensor([[1.0, -1, 0, 0], [0, 0, 1, -1]])
    readout.load_state_dict(state)
    patches = torch.zeros(1, 1, 128, 4)
    patches[0, 0, :, 0] = OBJECT.flatten()
    with torch.no_grad():
        return readout.positions(patches)[0, 0]


def draw() -> str:
    parts = [text(84, 28, "released grid", bold=True), text(262, 28, "centred, moved", bold=True)]
    parts += [*_grid(24), *_grid(202)]
    parts += [circle(*_place(24, place), 4, fill=RED) for place in _places(moved=False, reference="shifted")]
    for start, stop in zip(_places(moved=False), _places(moved=True), strict=True):
        begin, end = _place(202, start), _place(202, stop)
        parts.append(circle(*begin, 3, fill=PAPER, stroke=LINE))
        if abs(begin[0] - end[0]) + abs(begin[1] - end[1]) > 6:
            parts.append(path([begin, end], stroke=GREEN, thick=1.4))
        parts.append(circle(*end, 4, fill=GREEN))
    parts += lines(
        180,
        322,
        "21 samples stand for 128 patches. A network",
        "moves each, here towards the object. The released",
        "grid starts half a patch off, below and right.",
    )
    return picture(
        368,
        "Samples start on a grid and move",
        "Two grids of 16 by 8 patches with a person. On the left the 21 reference points of the released code, half a "
        "patch off the middle; on the right the centred ones, and where a network made by hand moves them.",
        *parts,
    )


def _places(**options) -> list[tuple[float, float]]:
    return [tuple(place) for place in positions(**options).flatten(0, 1).tolist()]


def _place(left: float, place: tuple[float, float]) -> tuple[float, float]:
    row, column = (min(max(at, 0.0), size - 1.0) for at, size in zip(place, GRID, strict=True))
    return left + CELL * (column + 0.5), 42 + CELL * (row + 0.5)


def _grid(left: float) -> list[str]:
    parts = [rect(left, 42, CELL * GRID[1], CELL * GRID[0], fill=PAPER, stroke=EDGE, radius=0)]
    for row, column in OBJECT.nonzero().tolist():
        parts.append(rect(left + CELL * column, 42 + CELL * row, CELL, CELL, fill=NIR, opacity=0.35, radius=0))
    parts.append(text(left + 60, 42 + 255, "16 × 8 patches", size=12, fill=SOFT))
    return parts
