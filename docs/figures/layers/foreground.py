"""From pixels to tokens: a mask, the share of each patch that it covers, and the tokens."""

import torch

from docs.figures.layers.drawing import EDGE, FAINT, GREEN, INK, PAPER, SOFT, code, path, picture, rect, text
from stmi_layers import token_foreground

GRID = (4, 3)
PATCH = 4  # pixels
PIXELS = """\
............
....###.....
....###.....
.....#......
...#####....
..#######...
..#######...
..##.##.##..
....####....
....####....
....#..#....
....#..#....
....#..#....
....#..#....
...##..##...
............"""
CELL, LEFT, TOP = 8, 14, 62


def mask() -> torch.Tensor:
    return torch.tensor([[pixel == "#" for pixel in row] for row in PIXELS.split()])


def shares() -> torch.Tensor:
    """Covered share of every patch, (rows, columns)."""
    return mask().float().unfold(0, PATCH, PATCH).unfold(1, PATCH, PATCH).mean(dim=(2, 3))


def tokens(threshold: float) -> torch.Tensor:
    return token_foreground(mask()[None], GRID, threshold=threshold)[0]


def draw() -> str:
    parts = [
        text(62, 26, "mask", bold=True),
        text(62, 44, "16 × 12 pixels", size=12, fill=SOFT),
        text(180, 26, "share per patch", bold=True),
        text(180, 44, "grid=(4, 3)", size=12, fill=SOFT),
        text(298, 26, "tokens", bold=True),
        text(298, 44, "threshold=0.5", size=12, fill=SOFT),
        *_pixels(),
        *_shares(),
        *_tokens(250, tokens(0.5)),
        text(14, 220, "In a row, class token first, other thresholds:", anchor="start"),
        *_row(244, 0.25),
        *_row(268, 0.4),
        *_row(292, 0.8),
    ]
    return picture(
        314,
        "A mask in pixels becomes a mask of tokens",
        "A small figure of 16 x 12 pixels, cut into 4 x 3 patches. Each patch shows the share of its area that is "
        "covered. Patches covered by at least half are foreground, and so is the class token in front.",
        *parts,
    )


def _pixels() -> list[str]:
    parts = [rect(LEFT, TOP, 96, 128, fill=FAINT, radius=0)]
    for y, row in enumerate(PIXELS.split()):
        for x, pixel in enumerate(row):
            if pixel == "#":
                parts.append(rect(LEFT + CELL * x, TOP + CELL * y, CELL, CELL, fill=INK, radius=0))
    for line in range(GRID[0] + 1):
        parts.append(path([(LEFT, TOP + 32 * line), (LEFT + 96, TOP + 32 * line)], stroke=GREEN, thick=1))
    for line in range(GRID[1] + 1):
        parts.append(path([(LEFT + 32 * line, TOP), (LEFT + 32 * line, TOP + 128)], stroke=GREEN, thick=1))
    return parts


def _shares() -> list[str]:
    parts = []
    for y, row in enumerate(shares().tolist()):
        for x, share in enumerate(row):
            parts.append(rect(129 + 34 * x, TOP + 32 * y, 32, 30, fill=GREEN, opacity=0.75 * share, stroke=EDGE))
            parts.append(text(145 + 34 * x, TOP + 19.5 + 32 * y, f"{share:.2f}".removeprefix("0"), size=12))
    return parts


def _tokens(left: float, flags: torch.Tensor) -> list[str]:
    parts = []
    for index, flag in enumerate(flags[1:].tolist()):
        y, x = divmod(index, GRID[1])
        fill = GREEN if flag else PAPER
        parts.append(rect(left + 34 * x, TOP + 32 * y, 32, 30, fill=fill, stroke=EDGE))
    return parts


def _row(y: float, threshold: float) -> list[str]:
    parts = [code(14, y + 5, f"{threshold:g}", anchor="start")]
    for index, flag in enumerate(tokens(threshold).tolist()):
        x = 62 + 21.5 * index + (6 if index else 0)
        parts.append(rect(x, y - 8, 18, 17, fill=GREEN if flag else PAPER, stroke=EDGE, thick=1 if index else 2))
    return parts
