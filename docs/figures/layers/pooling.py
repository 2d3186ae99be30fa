"""Global-patch reduction: a global token and the mean of the patches that are kept become one token."""

import torch

from docs.figures.layers.drawing import BANDS, EDGE, LINE, PAPER, SOFT, circle, code, lines, path, picture, rect, text
from stmi_layers import join_patch_mean

NAMES = ("RGB", "NIR", "TIR")
GLOBALS = torch.tensor([[[5.0], [2.0], [7.0]]])
PATCHES = torch.tensor([[[1, 3, 5, 7, 2, 6], [4, 8, 0, 6, 1, 9], [3, 3, 3, 3, 3, 3]]])[..., None].float()
KEEP = torch.tensor([[[True] * 6, [True, True, False, True, False, False], [True] * 6]])
PRESENT = torch.tensor([[True, True, False]])


def joined() -> list[list[float]]:
    """Global token and mean of the kept patches of each modality, in width 1."""
    return join_patch_mean(GLOBALS, PATCHES, keep=KEEP, present=PRESENT)[0].tolist()


def draw() -> str:
    parts = [
        text(38, 28, "global", bold=True),
        text(132, 28, "patches", bold=True),
        text(246, 28, "[ g ; mean ]", bold=True),
        text(326, 28, "result", bold=True),
    ]
    for band, pair in enumerate(joined()):
        parts += _row(54 + 78 * band, band, pair)
    parts += lines(180, 292, "The mean runs over the patches that keep leaves in.", "What is absent gives 0.")
    return picture(
        324,
        "Global token and mean of the kept patches become one token",
        "Three modalities with one global token and six patches each, of width 1. RGB keeps all patches, near infrared "
        "three of them, and the thermal image is absent, so that its result is 0.",
        *parts,
    )


def _row(top: float, band: int, pair: list[float]) -> list[str]:
    colour, there = BANDS[band], PRESENT[0, band].item()
    parts = [
        circle(
            38, top + 22, 15, fill=PAPER if there else "none", stroke=colour if there else EDGE, thick=2 if there else 1
        ),
        text(38, top + 60, NAMES[band] if there else "TIR absent", size=12, fill=SOFT),
    ]
    if there:
        parts.append(text(38, top + 27, f"{GLOBALS[0, band, 0]:g}", bold=True))
    for index in range(6):
        y, x = divmod(index, 3)
        kept = there and KEEP[0, band, index].item()
        left, upper = 90 + 28 * x, top - 4 + 28 * y
        parts.append(rect(left, upper, 26, 26, fill=PAPER if kept else "none", stroke=colour if kept else EDGE))
        if kept:
            parts.append(text(left + 13, upper + 18, f"{PATCHES[0, band, index, 0]:g}"))
    parts += [
        path([(180, top + 22), (206, top + 22)], head="head"),
        code(246, top + 27, f"[ {pair[0]:g} ; {pair[1]:g} ]", size=13),
        path([(286, top + 22), (304, top + 22)], head="head"),
        text(296, top + 60, "norm, map" if there else "", size=12, fill=SOFT),
        circle(326, top + 22, 13, fill=colour if there else "none", stroke="none" if there else LINE),
    ]
    if not there:
        parts.append(text(326, top + 27, "0"))
    return parts
