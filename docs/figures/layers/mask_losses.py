"""Mask losses: predictions of one mask, with both parts of the loss."""

import torch

from docs.figures.layers.drawing import GREEN, INK, code, heat, lines, picture, rect, text
from stmi_layers import mask_loss

MASK = torch.zeros(8, 6)
MASK[1:3, 2:4], MASK[3:6, 1:5], MASK[6:8, 2:4] = 1, 1, 1
# Logits of three predictions.
GOOD = torch.where(MASK > 0, 2.5, -2.5)
GROWN = torch.full((8, 6), 2.5)
GROWN[0], GROWN[:, 0] = -2.5, -2.5
NOTHING = torch.full((8, 6), -2.5)
NAMES = ("good", "too large", "nothing")


def parts_of_loss(logits: torch.Tensor) -> tuple[float, float]:
    """Cross-entropy and Dice loss of a prediction, each with weight 1."""
    given = (logits[None], MASK[None])
    bce = mask_loss(*given, bce_weight=1.0, dice_weight=0.0).item()
    return bce, mask_loss(*given, bce_weight=0.0, dice_weight=1.0).item()


def draw() -> str:
    parts = [text(180, 28, "Predictions of one mask", bold=True)]
    for index, (name, logits) in enumerate(zip(NAMES, (GOOD, GROWN, NOTHING), strict=True)):
        left = 22 + 112 * index
        bce, dice = parts_of_loss(logits)
        parts += heat(left, 44, logits.sigmoid().tolist(), cell=(16, 16), fill=GREEN, most=1.0)
        parts += _outline(left)
        parts += [
            text(left + 48, 194, name, bold=True),
            code(left + 48, 216, f"BCE {bce:.2f}"),
            code(left + 48, 234, f"Dice {dice:.2f}"),
        ]
    parts += lines(
        180,
        264,
        "The outline is the mask, green the probability.",
        "Cross-entropy counts pixels; Dice counts overlap,",
        "whatever the size of the object.",
    )
    return picture(
        310,
        "Two parts of a mask loss",
        "Three predictions of the same mask: a good one, one that is too large, and an empty one, with cross-entropy "
        "and Dice loss of each.",
        *parts,
    )


def _outline(left: float) -> list[str]:
    parts = []
    for y, x in MASK.nonzero().tolist():
        parts.append(rect(left + 16 * x, 44 + 16 * y, 14, 14, stroke=INK, thick=1.2))
    return parts
