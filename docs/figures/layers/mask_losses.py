"""Mask losses: the Dice loss of a small object that is missed, beside cross-entropy."""

import torch

from docs.figures.layers.drawing import BLUE, EDGE, GREEN, SOFT, picture, rect, text
from stmi_layers import mask_loss

MASK = torch.zeros(1, 6, 6, dtype=torch.bool)
MASK[0, 2:4, 3:5] = True


def parts_of(logits: torch.Tensor) -> tuple[float, float]:
    """Cross-entropy and Dice loss of a prediction."""
    bce, dice = (mask_loss(logits, MASK, bce_weight=1.0 - w, dice_weight=float(w)) for w in (0, 1))
    return bce.item(), dice.item()


def draw() -> str:
    found, missed = torch.where(MASK, 3.0, -3.0), torch.full((1, 6, 6), -3.0)
    shown = []
    for left, logits, title in ((34, found, "found"), (206, missed, "missed")):
        bce, dice = parts_of(logits)
        shown.append(text(left + 60, 28, title, bold=True))
        for row in range(6):
            for column in range(6):
                x, y, inside = left + 20 * column, 40 + 20 * row, bool(MASK[0, row, column])
                shown.append(
                    rect(x, y, 18, 18, fill="#ffffff", stroke=GREEN if inside else EDGE, thick=2 if inside else 1)
                )
                share = logits[0, row, column].sigmoid().item()
                shown.append(rect(x, y, 18, 18, fill=BLUE, opacity=share))
        shown.append(text(left + 60, 182, f"cross-entropy {bce:.2f}", size=12))
        shown.append(text(left + 60, 200, f"Dice {dice:.2f}", size=12))
    shown.append(text(180, 226, "green border: the mask; blue: what is predicted", size=12, fill=SOFT))
    return picture(
        240,
        "Cross-entropy hardly minds a small object that is missed, Dice does",
        "A mask of four of thirty-six pixels, found on the left and not at all on the right, with both losses.",
        *shown,
    )
