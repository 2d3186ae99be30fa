"""Adapters and prompts: where they join a frozen block, and which slots carry something on."""

import torch

from docs.figures.layers.drawing import BANDS, EDGE, FAINT, GREEN, PAPER, SOFT, lines, path, picture, rect, text
from stmi_layers import ParallelAdapter, ResidualPrompts

NAMES = ("RGB", "NIR", "TIR")


def carried() -> list[list[bool]]:
    """Whether a slot (columns) of an image (rows) depends on what the block before made of the prompts."""
    layer = ResidualPrompts(4, num_modalities=3, num_prompts=1)
    given = torch.zeros(1, 3, 1, 4)
    jacobian = torch.autograd.functional.jacobian(layer, given)
    return (jacobian.abs().sum(dim=(0, 3, 4, 5, 6, 7)) > 0).tolist()


def millions() -> float:
    """Parameters of an adapter at width 768."""
    return sum(parameter.numel() for parameter in ParallelAdapter(768, device="meta").parameters()) / 1e6


def draw() -> str:
    parts = [
        text(14, 28, "A frozen block with a parallel adapter", anchor="start", bold=True),
        *_block(),
        text(14, 246, "Prompts in front of the tokens of each image", anchor="start", bold=True),
    ]
    for band, row in enumerate(carried()):
        parts += _sequence(262 + 38 * band, band, row)
    parts += lines(
        180,
        394,
        "Every image has slots for prompts of all modalities.",
        "Its own slot (green) goes on from block to block.",
    )
    return picture(
        424,
        "Adapters and prompts in a frozen block",
        "A block of attention and feed-forward network, both frozen, with an adapter parallel to the feed-forward "
        "network. Below, the tokens of three images with one slot per modality; the own slot of each image carries on.",
        *parts,
    )


def _block() -> list[str]:
    frozen = {"fill": FAINT, "stroke": EDGE, "radius": 6}
    return [
        path([(120, 220), (120, 46)], head="head"),
        rect(60, 164, 120, 32, **frozen),
        text(120, 184, "norm, attention"),
        rect(60, 80, 120, 32, **frozen),
        text(120, 100, "norm, MLP"),
        path([(120, 138), (266, 138), (266, 114)], stroke=GREEN, head="green"),
        rect(206, 80, 120, 32, fill=PAPER, stroke=GREEN, thick=2, radius=6),
        text(266, 100, "adapter", fill=GREEN, bold=True),
        path([(266, 80), (266, 62), (126, 62)], stroke=GREEN, head="green"),
        text(266, 186, "grey: frozen", fill=SOFT, size=12),
        text(266, 204, f"adapter: {millions():.2f} M at 768", fill=SOFT, size=12),
    ]


def _sequence(top: float, band: int, slots: list[bool]) -> list[str]:
    parts = [text(14, top + 19, NAMES[band], anchor="start", fill=BANDS[band], bold=True)]
    parts += [rect(198 + 24 * token, top, 20, 28, fill=BANDS[band], opacity=0.55) for token in range(6)]
    for other, own in enumerate(slots):
        box = (60 + 42 * other, top, 36, 28)
        parts.append(rect(*box, fill=GREEN if own else PAPER, opacity=0.35 if own else 1, stroke=BANDS[other], thick=2))
        parts.append(text(78 + 42 * other, top + 19, f"p {'RNT'[other]}", size=12))
    return parts
