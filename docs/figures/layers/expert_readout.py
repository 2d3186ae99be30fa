"""Expert readout: the class tokens read the tokens of all experts; a missing modality is read by none."""

import torch

from docs.figures.layers.drawing import BANDS, FAINT, SOFT, circle, heat, lines, path, picture, rect, text
from stmi_layers import ExpertReadout

NAMES = ("RGB", "NIR", "TIR")
EXPERTS, TOKENS = 3, 6  # two tokens of each of three modalities
PRESENT = torch.tensor([[True, True, False]])


def shares() -> torch.Tensor:
    """How much the class token of each modality reads of each token: (modalities, experts, tokens)."""
    readout = ExpertReadout(dim=EXPERTS * TOKENS, num_heads=1)
    eye = torch.eye(EXPERTS * TOKENS)  # a direction per token, so that the result tells who was read
    wishes = torch.zeros(3, EXPERTS, TOKENS)
    wishes[0, 0, :2], wishes[0, 1, 2:], wishes[0, 2, 0] = 9.0, 6.0, 7.0
    wishes[1, 1, 2:4], wishes[1, 2], wishes[1, 0, 3] = 9.0, 5.0, 7.0
    with torch.no_grad():
        readout.in_proj_weight.copy_(eye.repeat(3, 1))
        readout.out_proj.weight.copy_(eye)
        globals_ = wishes.view(1, 3, -1)
        return (readout(globals_, eye.view(1, EXPERTS, TOKENS, -1), PRESENT) - globals_).view(3, EXPERTS, TOKENS)


def draw() -> str:
    weights = shares()
    parts = [text(56, 28, "class tokens", bold=True), text(216, 28, "what they read", bold=True)]
    for band in (0, 1):
        top = 72 + 122 * band
        parts += [
            circle(50, top + 38, 15, fill=BANDS[band]),
            text(50, top + 70, NAMES[band], size=12, fill=SOFT),
            path([(72, top + 38), (108, top + 38)], head="head"),
            *heat(120, top, weights[band].tolist(), cell=(28, 26), fill=BANDS[band], most=weights[:2].max().item()),
            *(text(324, top + 17 + 26 * row, f"expert {row + 1}", size=12, fill=SOFT) for row in range(EXPERTS)),
        ]
    for band, colour in enumerate(BANDS):
        there = bool(PRESENT[0, band])
        parts.append(rect(120 + 56 * band, 58, 54, 5, fill=colour if there else FAINT))
        parts.append(text(147 + 56 * band, 52, NAMES[band], size=12, fill=colour if there else SOFT, bold=there))
    parts += lines(
        180,
        304,
        "The weights of a class token sum to 1 over the tokens",
        "of all experts. TIR is absent and not read.",
    )
    return picture(
        334,
        "Class tokens read the tokens of all experts",
        "The class tokens of RGB and near infrared each read two tokens per modality of three experts, with weights "
        "that sum to 1. The tokens of the thermal image, which is absent, get no weight.",
        *parts,
    )
