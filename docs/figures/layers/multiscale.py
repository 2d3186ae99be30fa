"""Multi-scale pooling: cells of three sizes, and the share of each that is foreground."""

import torch

from docs.figures.layers.drawing import EDGE, GREEN, INK, PAPER, SOFT, code, lines, picture, rect, text
from stmi_layers import mask_pooled_cells

GRID = (8, 4)
MASK = torch.tensor(
    [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 0, 0]]
).float()
VALUES = torch.arange(32.0).view(1, 32, 1)


def shares(scale: int) -> torch.Tensor:
    """Share of foreground of every cell, as a map."""
    _, found = mask_pooled_cells(VALUES, MASK.flatten()[None], GRID, scale)
    return found[0].view(GRID[0] // scale, GRID[1] // scale)


def draw() -> str:
    parts = []
    for index, scale in enumerate((1, 2, 4)):
        left = 22 + 112 * index
        parts += [code(left + 46, 28, f"scale {scale}", size=13), *_map(left, scale)]
    parts += [
        code(180, 270, "softmax( q k / √d + β log(share + δ) )", size=12),
        *lines(
            180,
            296,
            "One softmax reads the cells of all scales and",
            "modalities. β, learned per head, says how much",
            "less a cell with little foreground is read.",
        ),
    ]
    return picture(
        342,
        "Patches are pooled to cells of several sizes",
        "A person on 8 by 4 patches, pooled to cells of one, two and four patches a side. A cell is as dark as its "
        "share of foreground.",
        *parts,
    )


def _map(left: float, scale: int) -> list[str]:
    parts, side = [], 24.0 * scale
    for y, row in enumerate(shares(scale).tolist()):
        for x, share in enumerate(row):
            box = (left + side * x, 42 + side * y, side - 2, side - 2)
            parts += [rect(*box, fill=PAPER, stroke=EDGE, thick=0.5), rect(*box, fill=GREEN, opacity=0.85 * share)]
            if scale > 1:
                label = f"{share:.2g}"
                parts.append(text(box[0] + side / 2 - 1, box[1] + side / 2 + 4, label, size=12, fill=INK))
    return [*parts, text(left + 47, 246, f"{len(shares(scale).flatten())} cells", size=12, fill=SOFT)]
