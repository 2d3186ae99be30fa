"""Rollout and selection: scores of every head, and the union of the best patches."""

import torch

from docs.figures.layers.drawing import BANDS, EDGE, GREEN, PAPER, SOFT, heat, lines, path, picture, rect, text
from stmi_layers import attention_rollout, select_tokens

GRID = (4, 3)
NUM = 2
# The patches that the global token looks at in the last layer: by modality and head.
LOOKS = torch.tensor([[[1, 4], [7, 10]], [[4, 7], [3, 5]]])


def scores() -> torch.Tensor:
    """Rollout (modalities, heads, patches) of two layers: patches mix with their neighbours, then some are read."""
    places = torch.cartesian_prod(torch.arange(GRID[0]), torch.arange(GRID[1])).float()
    near = torch.full((13, 13), -9.0)
    near[1:, 1:] = -1.5 * (places[:, None] - places).square().sum(dim=2)
    near[0, 0] = 0
    first = near.softmax(dim=1).expand(2, 2, 13, 13)
    last = torch.eye(13).expand(2, 2, 13, 13).clone()
    for modality in range(2):
        for head in range(2):
            logits = torch.full((13,), -2.0)
            logits[1 + LOOKS[modality, head]] = torch.tensor([2.0, 1.5])
            last[modality, head, 0] = logits.softmax(dim=0)
    return attention_rollout(first, last)


def keep() -> torch.Tensor:
    return select_tokens(scores()[None], num=NUM)[0]


def draw() -> str:
    parts = [text(118, 28, "scores of the heads", bold=True), text(300, 28, "kept", bold=True)]
    for modality in range(2):
        for head in range(2):
            parts += _map(54 + 78 * head, 60 + 112 * modality, modality, scores()[modality, head])
        name = ("RGB", "NIR")[modality]
        parts.append(text(14, 104 + 112 * modality, name, anchor="start", fill=BANDS[modality], bold=True))
    parts += [text(84 + 78 * head, 50, f"head {head + 1}", size=12, fill=SOFT) for head in range(2)]
    parts.append(path([(218, 166), (250, 166)], head="head"))
    for index, kept in enumerate(keep().tolist()):
        y, x = divmod(index, GRID[1])
        parts.append(rect(264 + 24 * x, 118 + 24 * y, 22, 22, fill=GREEN if kept else PAPER, stroke=EDGE))
    parts.append(text(299, 232, f"{int(keep().sum())} of 12", size=12, fill=SOFT))
    parts += lines(
        180, 304, "The best two patches of every head of every", "modality are kept, in all modalities alike."
    )
    return picture(
        334,
        "Each head keeps its best patches",
        "Rollout scores of twelve patches for two heads of RGB and of near infrared, the best two of each outlined, "
        "and the union of all of them.",
        *parts,
    )


def _map(left: float, top: float, modality: int, values: torch.Tensor) -> list[str]:
    rows = values.view(GRID).tolist()
    parts = heat(left, top, rows, cell=(22, 22), fill=BANDS[modality])
    best = select_tokens(values[None, None, None], num=NUM)[0]
    for index in best.nonzero()[:, 0].tolist():
        y, x = divmod(index, GRID[1])
        parts.append(rect(left + 22 * x, top + 22 * y, 20, 20, stroke=GREEN, thick=2.5))
    return parts
