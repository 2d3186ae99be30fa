"""Text alignment: which pairs of image and text are right, with and without identities."""

import torch
from torch import Tensor

from docs.figures.layers.drawing import EDGE, GREEN, SOFT, code, picture, rect, text
from stmi_layers import image_text_alignment_loss

LABELS = torch.tensor([0, 0, 1, 1, 2])
FEATURES = torch.eye(3)[LABELS]


def target(labels: Tensor) -> Tensor:
    """Even over the texts of the same identity."""
    same = (labels[:, None] == labels).float()
    return same / same.sum(dim=1, keepdim=True)


def losses() -> tuple[float, float]:
    """Features that are equal within each identity: without and with labels."""
    without, with_labels = (image_text_alignment_loss(FEATURES, FEATURES, labels) for labels in (None, LABELS))
    return without.item(), with_labels.item()


def draw() -> str:
    parts = []
    for left, labels, title in ((24, torch.arange(5), "without identities"), (200, LABELS, "with identities")):
        parts.append(text(left + 68, 28, title, bold=True))
        for row, shares in enumerate(target(labels)):
            for column, share in enumerate(shares.tolist()):
                x, y = left + 27 * column, 42 + 27 * row
                parts.append(rect(x, y, 25, 25, fill="#ffffff", stroke=EDGE))
                parts.append(rect(x, y, 25, 25, fill=GREEN, opacity=share))
                if share:
                    parts.append(code(x + 12.5, y + 17, "1" if share == 1 else "1/2"))
    parts += [
        text(180, 200, "rows are images, columns texts, green is right", size=12, fill=SOFT),
        text(180, 218, "identities 1, 1, 2, 2, 3", size=12, fill=SOFT),
    ]
    return picture(
        232,
        "Texts of the same identity are no negatives",
        "Two tables of five images and five texts. Without identities only the diagonal is right; with them every text "
        "of the same identity is, with an even share.",
        *parts,
    )
