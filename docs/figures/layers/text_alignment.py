"""Text alignment: cosines of images and captions, and which pairs the loss wants."""

import math

import torch

from docs.figures.layers.drawing import BLUE, EDGE, GREEN, SOFT, heat, lines, picture, rect, text
from stmi_layers import image_text_alignment_loss

LABELS = torch.tensor([0, 0, 1, 1, 2, 2])
IMAGES = torch.tensor([0.0, 16, 62, 75, 130, 118])  # directions in degrees
TEXTS = torch.tensor([8.0, 4, 70, 66, 122, 128])
PRESENT = torch.tensor([True, True, True, False, True, True])


def cosines() -> torch.Tensor:
    return _units(IMAGES) @ _units(TEXTS).T


def loss(*, labels: bool) -> float:
    given = LABELS if labels else None
    return image_text_alignment_loss(_units(IMAGES), _units(TEXTS), given, temperature=0.1, present=PRESENT).item()


def draw() -> str:
    shown = torch.where(PRESENT[:, None] & PRESENT, cosines().clamp(min=0.0), 0.0)
    parts = [
        text(180, 24, "Cosines of images and captions", bold=True),
        text(104, 56, "caption", size=12, fill=SOFT, anchor="end"),
        *heat(112, 64, shown.tolist(), cell=(34, 28), fill=BLUE),
        *(text(128 + 34 * index, 56, f"{index + 1}", size=12, fill=SOFT) for index in range(6)),
        *(text(104, 82 + 28 * index, f"image {index + 1}", size=12, fill=SOFT, anchor="end") for index in range(6)),
    ]
    for row in range(6):
        for column in range(6):
            box = (112 + 34 * column, 64 + 28 * row, 32, 26)
            if LABELS[row] == LABELS[column] and PRESENT[row] and PRESENT[column]:
                parts.append(rect(*box, stroke=GREEN, thick=2.5))
            elif not (PRESENT[row] and PRESENT[column]):
                parts.append(rect(*box, fill=EDGE, opacity=0.25))
    parts += [
        text(180, 258, f"with labels: loss {loss(labels=True):.2f}", fill=GREEN, bold=True),
        text(180, 278, f"every pair for itself: loss {loss(labels=False):.2f}", fill=SOFT),
        *lines(
            180,
            304,
            "Green: wanted. A caption of the same identity is no",
            "negative. Pair 4 has no caption and is left out.",
        ),
    ]
    return picture(
        334,
        "Captions of the same identity are wanted, too",
        "A matrix of cosines of six images with six captions of three identities. The pairs of an identity are "
        "outlined; the fourth row and column are left out, because a caption is missing.",
        *parts,
    )


def _units(degrees: torch.Tensor) -> torch.Tensor:
    angles = degrees * (math.pi / 180)
    return torch.stack([angles.cos(), angles.sin()], dim=1)
