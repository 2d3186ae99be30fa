"""Reconstruction: the place of a missing modality is filled from those that are there."""

import torch

from docs.figures.layers.drawing import BANDS, EDGE, GREEN, PAPER, SOFT, code, lines, path, picture, rect, text
from stmi_layers import CrossModalReconstruction, reconstruction_loss

NAMES = ("RGB", "NIR", "TIR")
TOKENS = torch.tensor([[[2.0, 4, 6, 8], [4, 8, 2, 6], [3, 7, 5, 5]]])[..., None]  # of width 1
PRESENT = torch.tensor([[True, True, False]])


def layer() -> CrossModalReconstruction:
    """A layer with blocks that change nothing."""
    reconstruction = CrossModalReconstruction(1, num_modalities=3, num_heads=1)
    with torch.no_grad():
        for parameter in reconstruction.parameters():
            parameter.zero_()
    return reconstruction


@torch.no_grad()
def filled() -> list[float]:
    """Tokens in the place of the thermal image."""
    return layer()(TOKENS, PRESENT)[0, 2, :, 0].tolist()


@torch.no_grad()
def losses() -> list[float]:
    """What the reconstructions from RGB and from near infrared cost against the true tokens."""
    made = [layer().translate(TOKENS[:, source], source, 2) for source in (0, 1)]
    return [reconstruction_loss(tokens, TOKENS[:, 2]).item() for tokens in made]


def draw() -> str:
    rgb, nir = losses()
    parts = [
        text(14, 28, "A sample without its thermal image", anchor="start", bold=True),
        *_row(48, 0, TOKENS[0, 0, :, 0].tolist()),
        *_row(96, 1, TOKENS[0, 1, :, 0].tolist()),
        *_row(200, 2, filled(), there=False),
        path([(262, 64), (318, 64), (318, 204), (266, 212)], stroke=GREEN, head="green"),
        path([(262, 112), (292, 112), (292, 196), (266, 208)], stroke=GREEN, head="green"),
        code(322, 148, "U", fill=GREEN, anchor="start", size=14),
        code(282, 148, "U", fill=GREEN, anchor="end", size=14),
        text(160, 186, "mean of both reconstructions", size=12, fill=SOFT),
        text(14, 276, "In training, with all three there", anchor="start", bold=True),
        *_row(292, 2, TOKENS[0, 2, :, 0].tolist()),
        text(280, 313, f"loss {rgb:g} + {nir:g}", anchor="start"),
        *lines(
            180,
            350,
            f"Each reconstruction has a loss: {rgb:g} from RGB, {nir:g} from NIR.",
            "The blocks U of the picture change nothing,",
            "so that one can add up.",
        ),
    ]
    return picture(
        390,
        "Tokens of a missing modality are written from the others",
        "Four tokens of RGB and of near infrared, and tokens in the place of the missing thermal image: the mean of "
        "what one chain of blocks per pair makes of the others. In training the true tokens are the target.",
        *parts,
    )


def _row(top: float, band: int, values: list[float], *, there: bool = True) -> list[str]:
    parts = [text(14, top + 21, NAMES[band], anchor="start", fill=BANDS[band], bold=True)]
    for index, value in enumerate(values):
        box = (66 + 48 * index, top, 44, 32)
        parts.append(rect(*box, fill=PAPER if there else "none", stroke=BANDS[band] if there else GREEN, thick=1.5))
        parts.append(text(88 + 48 * index, top + 21, f"{value:g}"))
    return [*parts, *([] if there else [rect(60, top - 6, 204, 44, stroke=EDGE, radius=6)])]
