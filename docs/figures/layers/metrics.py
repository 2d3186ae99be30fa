"""One ranked list, and the scores that it gives."""

import torch

from docs.figures.layers.drawing import (
    EDGE,
    GREEN,
    INK,
    LINE,
    PAPER,
    RED,
    SOFT,
    circle,
    code,
    path,
    picture,
    rect,
    text,
)
from stmi_layers import ReIDMetrics, rank_gallery, reid_metrics

QUERY, IDENTITY, CAMERA = torch.tensor([[0.0]]), torch.tensor([7]), torch.tensor([1])
GALLERY = torch.tensor([[0.2], [0.5], [0.9], [1.1], [1.6], [2.3], [2.8]])
IDENTITIES = torch.tensor([7, 7, 5, 7, 9, 7, 5])
CAMERAS = torch.tensor([1, 2, 1, 3, 2, 2, 3])


def ranking() -> list[int]:
    """Gallery indices, best first."""
    ranked = rank_gallery(
        QUERY, GALLERY, IDENTITY, IDENTITIES, k=len(GALLERY), query_groups=CAMERA, gallery_groups=CAMERAS
    )
    return [index for index in ranked[0].tolist() if index >= 0]


def scores() -> ReIDMetrics:
    return reid_metrics(QUERY, GALLERY, IDENTITY, IDENTITIES, ranks=(1,), query_groups=CAMERA, gallery_groups=CAMERAS)


def hits() -> list[int]:
    """Ranks of the positives, from 1."""
    return [rank for rank, index in enumerate(ranking(), start=1) if IDENTITIES[index] == IDENTITY]


def draw() -> str:
    parts = [
        text(14, 28, "Query: identity 7, camera 1", anchor="start", bold=True),
        text(14, 50, "gallery by distance", anchor="start", fill=SOFT),
    ]
    rank_of = {index: rank for rank, index in enumerate(ranking(), start=1)}
    for row, index in enumerate(GALLERY[:, 0].argsort().tolist()):
        parts += _entry(60 + 29 * row, index, rank_of.get(index))
    parts += _worked(288)
    return picture(
        376,
        "The scores of one ranked list, worked out",
        "Seven gallery entries by distance to a query of identity 7 in camera 1. The nearest has the same identity and "
        "the same camera and is dropped. Of the other six those at ranks 1, 3 and 5 are positives.",
        *parts,
    )


def _entry(top: float, index: int, rank: int | None) -> list[str]:
    identity, camera = IDENTITIES[index].item(), CAMERAS[index].item()
    right = identity == IDENTITY.item()
    middle = top + 17
    parts = [rect(50, top, 170, 25, fill=PAPER if rank else "none", stroke=GREEN if right and rank else EDGE)]
    parts.append(code(60, middle, f"id {identity}  cam {camera}", anchor="start"))
    parts.append(text(212, middle, f"{GALLERY[index].item():.1f}", anchor="end", fill=SOFT))
    if rank is None:
        parts.append(path([(46, top + 13), (224, top + 13)], stroke=RED))
        parts.append(text(232, middle, "dropped", anchor="start", fill=RED))
        return parts
    parts.append(text(34, middle, str(rank), bold=True))
    if right:
        found = hits().index(rank) + 1
        parts.append(circle(238, top + 12.5, 5, fill=GREEN))
        parts.append(text(252, middle, f"precision {found}/{rank}", anchor="start", fill=GREEN))
    else:
        parts.append(circle(238, top + 12.5, 5, stroke=LINE))
    return parts


def _worked(top: float) -> list[str]:
    result, ranks = scores(), hits()
    terms = " + ".join(f"{found}/{rank}" for found, rank in enumerate(ranks, start=1))
    lines = [
        f"AP = ({terms}) / {len(ranks)} = {result.mAP:.3f}",
        f"inverse negative penalty = {len(ranks)}/{ranks[-1]} = {result.mINP:.2f}",
        f"CMC at rank 1 = {result.cmc[1]:g}: the first is right",
        "mAP, mINP, CMC: the means over all queries",
    ]
    return [
        text(14, top + 20 * line, content, anchor="start", fill=SOFT if line == 3 else INK, bold=line == 0)
        for line, content in enumerate(lines)
    ]
