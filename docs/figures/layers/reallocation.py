"""STR: what queries that look for parts of a figure read from its patches."""

import torch

from docs.figures.layers.drawing import (
    BLUE,
    EDGE,
    GREEN,
    GREY,
    NIR,
    PAPER,
    RGB,
    SOFT,
    TIR,
    code,
    path,
    picture,
    rect,
    text,
)
from stmi_layers import SemanticTokenReallocation

PARTS = ("head", "body", "legs", "background")
# Which part of the figure each patch shows, row by row.
LAYOUT = torch.tensor([[3, 0, 0, 3], [3, 0, 0, 3], [1, 1, 1, 1], [3, 1, 1, 3], [3, 2, 2, 3], [3, 2, 2, 3]])
COLOURS = (RGB, NIR, TIR, GREY)


def attention() -> torch.Tensor:
    """What the learned queries and the prior read from each patch: (queries, patches)."""
    layer = SemanticTokenReallocation(dim=4, num_tokens=3, num_heads=1)
    eye = torch.eye(4)
    with torch.no_grad():
        layer.queries.copy_(eye[:3])  # by hand: one query per part
        layer.in_proj_weight.copy_(eye.repeat(3, 1))
        prior = 0.8 * eye[1:2] + 0.6 * eye[2:3]  # as if a text spoke of body and legs
        return layer.attention(eye[LAYOUT.flatten()][None], prior)[0, 0]


def draw() -> str:
    weights = attention()
    parts = [
        text(66, 28, "24 patches", bold=True),
        *_patches(),
        path([(116, 116), (140, 116)], head="head"),
        text(246, 28, "read by 3 + 1 queries", bold=True),
    ]
    names = ("query 1", "query 2", "query 3", "prior")
    for index, name in enumerate(names):
        left, top = 150 + 104 * (index % 2), 44 + 138 * (index // 2)
        parts += _map(left, top, name, weights[index])
    smallest = weights.min().item()
    parts += [
        text(180, 336, "The weights of a query sum to 1, and the smallest", size=12, fill=SOFT),
        text(180, 352, f"is {smallest:.3f}: every patch is read, none is dropped.", size=12, fill=SOFT),
    ]
    return picture(
        366,
        "Queries read all patches, each with its own weights",
        "24 patches of a figure with head, body, legs and background. Three queries and a text prior put most of "
        "their attention on different parts; no patch gets a weight of zero.",
        *parts,
    )


def share(weights: torch.Tensor, part: int) -> float:
    return weights[LAYOUT.flatten() == part].sum().item()


def _patches() -> list[str]:
    parts = []
    for y, row in enumerate(LAYOUT.tolist()):
        for x, part in enumerate(row):
            parts.append(rect(20 + 23 * x, 44 + 24 * y, 21, 22, fill=COLOURS[part], stroke=EDGE, thick=0.5))
    for index, (name, colour) in enumerate(zip(PARTS, COLOURS, strict=True)):
        parts.append(rect(20, 206 + 22 * index, 13, 13, fill=colour))
        parts.append(text(40, 217 + 22 * index, name, anchor="start", fill=SOFT))
    return parts


def _map(left: float, top: float, name: str, weights: torch.Tensor) -> list[str]:
    colour = GREEN if name == "prior" else BLUE
    parts = [code(left + 40, top + 10, name)]
    scale = weights.max().item()
    for index, weight in enumerate(weights.tolist()):
        y, x = divmod(index, 4)
        box = (left + 20 * x, top + 18 + 15 * y, 18, 13)
        parts.append(rect(*box, fill=PAPER, stroke=EDGE, thick=0.5))
        parts.append(rect(*box, fill=colour, opacity=weight / scale))
    best = max(range(4), key=lambda part: share(weights, part))
    parts.append(text(left + 40, top + 122, f"{PARTS[best]} {share(weights, best):.2f}", size=12, fill=SOFT))
    return parts
