"""Selection: what a class token takes of its own patches, and what those of the other bands take of them."""

import torch
from torch import Tensor

from docs.figures.layers.drawing import BANDS, BLUE, EDGE, GREEN, INK, PAPER, SOFT, picture, rect, text
from stmi_layers.selection import select_across, top_tokens

NAMES = ("RGB", "NIR", "TIR")
KEEP = 4
# How much each patch of a 4 x 4 grid shows of a person: in RGB the legs are dark, in TIR the head glows.
SHOWN = torch.tensor(
    [
        [[0.1, 0.7, 0.6, 0.2], [0.1, 0.9, 0.8, 0.3], [0.0, 0.4, 0.3, 0.1], [0.0, 0.1, 0.2, 0.0]],
        [[0.0, 0.4, 0.5, 0.1], [0.2, 0.8, 0.7, 0.1], [0.1, 0.9, 0.6, 0.2], [0.1, 0.5, 0.3, 0.0]],
        [[0.1, 0.9, 0.8, 0.1], [0.3, 0.6, 0.5, 0.2], [0.1, 0.5, 0.7, 0.1], [0.2, 0.4, 0.6, 0.1]],
    ]
).flatten(1)


def selected() -> tuple[Tensor, Tensor]:
    """By their own class token, and by those of the other bands, (bands patches) each."""
    own = top_tokens(SHOWN, KEEP)
    # A class token looks for what its own band shows, and for what it misses there.
    across = SHOWN[None] + 0.5 * (1 - SHOWN[:, None])
    return own, select_across(across[None], KEEP)[0]


def draw() -> str:
    own, others = selected()
    parts = []
    for band, name in enumerate(NAMES):
        left = 16 + 114 * band
        parts.append(text(left + 50, 32, name, bold=True))
        for patch, shown in enumerate(SHOWN[band].tolist()):
            x, y = left + 25 * (patch % 4), 42 + 25 * (patch // 4)
            parts.append(rect(x, y, 24, 24, fill=BANDS[band], opacity=shown, stroke=EDGE))
            if own[band, patch]:
                parts.append(rect(x + 2, y + 2, 20, 20, stroke=INK, thick=2))
            if others[band, patch]:
                parts.append(rect(x + 7, y + 7, 10, 10, fill=BLUE, stroke=PAPER))
        kept = int((own | others)[band].sum())
        parts.append(text(left + 50, 162, f"{kept} of 16", fill=GREEN, bold=True))
    parts += [
        rect(16, 182, 20, 20, stroke=INK, thick=2),
        text(44, 197, f"one of the {KEEP} that its own class token selects", anchor="start"),
        rect(21, 215, 10, 10, fill=BLUE, stroke=PAPER),
        text(44, 225, "selected by the class tokens of other bands", anchor="start"),
        text(16, 251, "Gates are 1 for either; the others are not read.", anchor="start", fill=SOFT),
    ]
    return picture(
        266,
        "Patches are kept that their own class token or those of the other bands select",
        "Three bands, each a grid of four by four patches, darker where a patch shows more of a person. A frame marks "
        "the four patches that the class token of the band selects, a dot those that class tokens of other bands "
        "select. The number of kept patches per band stands below.",
        *parts,
    )
