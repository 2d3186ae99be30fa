"""The deformable readout: where a network moves the samples of one image."""

import torch
from torch import Tensor

from docs.figures.layers.drawing import BLUE, GREEN, LINE, SOFT, circle, path, picture, rect, text
from stmi_layers import DeformableReadout

GRID, CELL, LEFT, TOP = (8, 8), 30, 60, 44


def places() -> tuple[Tensor, Tensor]:
    """Reference points and places of the samples, rows and columns of patches."""
    torch.manual_seed(3)
    readout = DeformableReadout(8, 3, GRID, max_offset=(2.0, 2.0))
    with torch.no_grad():
        readout.networks[0].point.weight.mul_(12)  # pyright: ignore
        moved = readout.positions(torch.randn(1, 3, 64, 8))[0, 0].flatten(0, 1)
        readout.networks[0].point.weight.zero_()  # pyright: ignore
        return readout.positions(torch.randn(1, 3, 64, 8))[0, 0].flatten(0, 1), moved.clamp(0, 7)


def at(place: Tensor) -> tuple[float, float]:
    return LEFT + CELL * (place[1].item() + 0.5), TOP + CELL * (place[0].item() + 0.5)


def draw() -> str:
    parts = [text(180, 28, "8 x 8 patches, 9 samples", bold=True)]
    for row in range(GRID[0]):
        parts += [rect(LEFT + CELL * c + 2, TOP + CELL * row + 2, CELL - 4, CELL - 4, fill="#ffffff") for c in range(8)]
    for reference, moved in zip(*places(), strict=True):
        parts += [path([at(reference), at(moved)], head="head", stroke=LINE), circle(*at(reference), 4, fill=BLUE)]
        parts.append(circle(*at(moved), 6, stroke=GREEN, thick=2))
    parts += [
        circle(70, 306, 4, fill=BLUE),
        text(80, 310, "centre of a window", size=12, fill=SOFT, anchor="start"),
        circle(206, 306, 6, stroke=GREEN, thick=2),
        text(218, 310, "where it is read", size=12, fill=SOFT, anchor="start"),
    ]
    return picture(
        328,
        "Samples of the deformable readout move away from the centres of their windows",
        "A map of eight by eight patches with nine reference points; an arrow leads from each to the place where the "
        "maps of all modalities are read.",
        *parts,
    )
