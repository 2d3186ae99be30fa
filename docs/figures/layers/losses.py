"""Batch-hard triplets: the pair that one anchor is judged by, and the loss of the whole batch."""

import math

import torch

from docs.figures.layers.drawing import BANDS, EDGE, GREEN, INK, PAPER, RED, SOFT, circle, path, picture, rect, text
from stmi_layers import batch_hard_triplet

FEATURES = torch.tensor(
    [[1.0, 2.0], [2.5, 0.5], [0.5, 0.5], [3.2, 2.2], [4.5, 1.2], [4.4, 2.8], [2.4, 3.4], [1.2, 4.0], [3.2, 4.2]]
)
LABELS = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
ANCHOR = 0


def mined(anchor: int) -> tuple[int, int, float, float]:
    """Farthest positive, nearest negative, and their distances."""
    distance = torch.cdist(FEATURES, FEATURES)[anchor]
    same = LABELS.eq(LABELS[anchor])
    positive = distance.where(same, -math.inf).argmax().item()
    negative = distance.where(~same, math.inf).argmin().item()
    return int(positive), int(negative), distance[int(positive)].item(), distance[int(negative)].item()


def soft_margin(anchor: int) -> float:
    _, _, positive, negative = mined(anchor)
    return math.log1p(math.exp(positive - negative))


def draw() -> str:
    positive, negative, pull, push = mined(ANCHOR)
    loss = batch_hard_triplet(FEATURES, LABELS).item()
    centre = [_place(x, y) for x, y in FEATURES.tolist()]
    parts = [rect(14, 14, 332, 236, fill=PAPER, stroke=EDGE)]
    parts.append(path([centre[ANCHOR], _short(centre[ANCHOR], centre[positive])], stroke=GREEN, thick=2, head="green"))
    parts.append(path([centre[ANCHOR], _short(centre[ANCHOR], centre[negative])], stroke=RED, thick=2, head="red"))
    for index, (x, y) in enumerate(centre):
        ring = {ANCHOR: INK, positive: GREEN, negative: RED}.get(index, "none")
        parts.append(circle(x, y, 8, fill=BANDS[int(LABELS[index])], stroke=ring, thick=3))
    parts += [
        text(centre[ANCHOR][0] - 14, centre[ANCHOR][1] - 12, "anchor"),
        text(14, 274, f"farthest of its identity: {pull:.2f}", anchor="start", fill=GREEN, bold=True),
        text(14, 294, f"nearest of another: {push:.2f}", anchor="start", fill=RED, bold=True),
        text(14, 316, _terms(pull, push), anchor="start"),
        text(14, 336, f"the batch: mean over the nine anchors = {loss:.2f}", anchor="start", fill=SOFT),
    ]
    return picture(
        350,
        "Each anchor is judged by its farthest positive and its nearest negative",
        "Nine points on a plane, three of each of three identities. From one anchor an arrow leads to the farthest "
        "point of its own identity and one to the nearest point of another. The soft margin turns the difference of "
        "the two distances into a loss.",
        *parts,
    )


def _terms(pull: float, push: float) -> str:
    return f"its loss: log(1 + exp({pull:.2f} - {push:.2f})) = {soft_margin(ANCHOR):.2f}"


def _place(x: float, y: float) -> tuple[float, float]:
    return 14 + 64 * x, 250 - 48 * y


def _short(start: tuple[float, float], stop: tuple[float, float]) -> tuple[float, float]:
    """Where an arrow to `stop` ends: in front of its dot."""
    keep = 1 - 12 / math.dist(start, stop)
    return start[0] + keep * (stop[0] - start[0]), start[1] + keep * (stop[1] - start[1])
