"""Multi-scale pooling: the share of foreground of every cell at three scales."""

import torch

from docs.figures.layers.drawing import EDGE, GREEN, SOFT, code, picture, rect, text
from stmi_layers import mask_pooled_cells

GRID, SIDE = (8, 8), 100
MASK = torch.zeros(1, 64)
for place, share in {
    (1, 3): 1,
    (1, 4): 1,
    (2, 3): 1,
    (2, 4): 1,
    (3, 2): 0.5,
    (3, 3): 1,
    (3, 4): 1,
    (3, 5): 0.5,
}.items():
    MASK[0, place[0] * 8 + place[1]] = share
    MASK[0, (place[0] + 3) * 8 + place[1]] = share


def shares(scale: int) -> torch.Tensor:
    """Of every cell, (rows columns)."""
    count = GRID[0] // scale
    return mask_pooled_cells(torch.zeros(1, 64, 1), MASK, GRID, scale)[1].reshape(count, count)


def draw() -> str:
    parts = []
    for index, scale in enumerate((1, 2, 4)):
        left, cell = 16 + 114 * index, SIDE / 8 * scale
        parts.append(text(left + SIDE / 2, 28, f"scale {scale}", bold=True))
        for row, values in enumerate(shares(scale).tolist()):
            for column, value in enumerate(values):
                x, y = left + cell * column, 40 + cell * row
                parts.append(rect(x, y, cell - 1.5, cell - 1.5, fill="#ffffff", stroke=EDGE, thick=0.6))
                parts.append(rect(x, y, cell - 1.5, cell - 1.5, fill=GREEN, opacity=value))
                if scale == 4:
                    parts.append(code(x + cell / 2, y + cell / 2 + 4, f"{value:.2f}"))
    parts.append(text(180, 164, "green is the share of foreground of a cell;", size=12, fill=SOFT))
    parts.append(text(180, 180, "queries read all cells of all scales together", size=12, fill=SOFT))
    return picture(
        194,
        "One mask at three scales",
        "The share of foreground of eight by eight patches, of four by four cells and of two by two cells.",
        *parts,
    )
