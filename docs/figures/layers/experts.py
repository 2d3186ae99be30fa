"""Experts: gates over features, cosines of patches with sentences, and shares of a router."""

import torch

from docs.figures.layers.drawing import (
    BLUE,
    EDGE,
    GREEN,
    GREY,
    NIR,
    RGB,
    SOFT,
    TIR,
    code,
    heat,
    lines,
    picture,
    rect,
    text,
)
from stmi_layers import feature_gates, modality_subsets, text_similarity, token_gates

LAYOUT = torch.tensor([[3, 0, 0, 3], [1, 1, 1, 1], [3, 1, 1, 3], [3, 2, 2, 3]])  # head, body, legs, background
COLOURS = (RGB, NIR, TIR, GREY)
PARTS = torch.eye(4)[LAYOUT.flatten()]
SUBSETS = modality_subsets(3)
NAMES = ("R", "N", "T", "RN", "RT", "NT", "RNT")


def gates() -> torch.Tensor:
    """Gates (heads, features) of seven features of width 4, the third absent; each head likes another direction."""
    features = 2.5 * torch.cat([SUBSETS.float(), torch.ones(7, 1)], dim=1)
    query = torch.tensor([[0.9, 0.2, 0.4, 0.4]])
    present = torch.tensor([[True, True, False, True, True, True, True]])
    return feature_gates(query, features[None], torch.eye(4), torch.eye(4), 2, present=present)[0]


def cosines() -> torch.Tensor:
    """Cosines (experts, patches) with a text about head and body, and with one about the legs."""
    text_features = torch.tensor([[0.6, 1.0, 0.0, 0.0], [0.0, 0.2, 1.0, 0.0]])
    return text_similarity(PARTS[None, None], text_features[None, :, None])[0, :, 0]


def shares() -> torch.Tensor:
    """Shares (experts, patches) of a router that tells the figure from the background."""
    weight = torch.tensor([[2.0, 2.0, 0.0, 0.0], [0.0, 0.0, 2.0, 1.0]])
    return token_gates(PARTS[None], weight, torch.zeros(2))[0]


def draw() -> str:
    parts = [
        text(14, 28, "Gated: which features count", anchor="start", bold=True),
        *(code(98 + 34 * index, 50, name) for index, name in enumerate(NAMES)),
        *(text(72, 72 + 26 * head, f"head {head + 1}", size=12, anchor="end", fill=SOFT) for head in range(2)),
        *heat(82, 56, gates().tolist(), cell=(34, 26), fill=GREEN),
        text(14, 138, "Text-modulated: cosine with the sentences", anchor="start", bold=True),
        *_layout(14, 152),
        *_maps(132, 152, cosines(), ("“jacket”", "“jeans”"), BLUE),
        text(14, 270, "Shared: who takes which patch", anchor="start", bold=True),
        *_layout(14, 284),
        *_maps(132, 284, shares(), ("expert 1", "expert 2"), GREEN),
        *lines(180, 404, "The gates of a head sum to 1; T is absent and gets 0.", "The shares of a patch sum to 1."),
    ]
    return picture(
        434,
        "Three kinds of experts",
        "At the top the gates of two heads over the features of seven subsets, zero where the thermal image alone is "
        "absent. In the middle the cosines of the patches of a figure with two sentences. Below the shares that a "
        "router gives two experts.",
        *parts,
    )


def _layout(left: float, top: float) -> list[str]:
    parts = []
    for y, row in enumerate(LAYOUT.tolist()):
        for x, part in enumerate(row):
            box = (left + 20 * x, top + 19 * y, 18, 17)
            parts.append(rect(*box, fill=COLOURS[part], stroke=EDGE, thick=0.5))
    return [*parts, text(left + 39, top + 94, "patches", size=12, fill=SOFT)]


def _maps(left: float, top: float, maps: torch.Tensor, names: tuple[str, str], fill: str) -> list[str]:
    parts = []
    for expert, (weights, name) in enumerate(zip(maps, names, strict=True)):
        x = left + 112 * expert
        parts += heat(x, top, weights.view(4, 4).tolist(), cell=(20, 19), fill=fill, most=1.0)
        parts.append(text(x + 39, top + 94, name, size=12, fill=SOFT))
    return parts
