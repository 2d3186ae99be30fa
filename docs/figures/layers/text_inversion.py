"""Text inversion: the outputs at the end of a caption and at its learned words become one image token."""

import torch

from docs.figures.layers.drawing import EDGE, FAINT, GREEN, NIR, PAPER, SOFT, code, lines, path, picture, rect, text
from stmi_layers import prompted_text_feature

WIDTHS = (24, 28, 46, 26, 24, 30, 30, 54, 24)  # of the boxes of the words
WORDS = ("start", "An", "image", "of", "a", "X", "X", "person", "end", "")
IDS = torch.tensor([[90, 1, 2, 3, 4, 5, 5, 6, 99, 0]])
OUTPUTS = torch.tensor([[1.0, 2, 1, 3, 2, 4, 6, 3, 8, 0]])[..., None]  # in width 1


def feature() -> float:
    return prompted_text_feature(OUTPUTS, IDS, num_prompts=2).item()


def read() -> list[int]:
    """The places that are read: those on which the feature depends."""
    outputs = OUTPUTS.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(prompted_text_feature(outputs, IDS, num_prompts=2).sum(), outputs)
    return gradient[0, :, 0].nonzero()[:, 0].tolist()


def draw() -> str:
    parts = [
        text(14, 28, "Caption, with two learned words", anchor="start", bold=True),
        text(14, 122, "Outputs of the text tower", anchor="start", bold=True),
    ]
    places = read()
    for index, (word, width) in enumerate(zip(WORDS, WIDTHS, strict=False)):
        left = 29 + sum(WIDTHS[:index]) + 2 * index
        middle, learned, used = left + width / 2, word == "X", index in places
        parts += [
            _cell(left, 40, width, marked=learned),
            text(middle, 57, "" if word in ("start", "end") else word, size=12),
            text(middle, 84, "+ p" if learned else "", size=12, fill=GREEN, bold=True),
            _cell(left, 134, width, marked=used),
            code(middle, 152, f"{OUTPUTS[0, index, 0]:g}", size=13),
        ]
        if used:
            parts.append(path([(middle, 160), (180, 200)], stroke=GREEN, thick=1.2))
    parts += [
        path([(180, 90), (180, 104)], head="head"),
        code(180, 216, f"mean = {feature():g}", size=14),
        path([(180, 224), (180, 248)], head="green", stroke=GREEN),
        text(262, 240, "two linear maps", size=12, fill=SOFT),
        text(14, 240, "Image tokens", anchor="start", bold=True),
    ]
    names = ("class", *("",) * 6, "text")
    for index, name in enumerate(names):
        fill = {"class": NIR, "text": GREEN}.get(name, FAINT)
        parts.append(rect(14 + 42 * index, 254, 38, 26, fill=fill, opacity=0.6 if name else 1, stroke=EDGE))
        parts.append(text(33 + 42 * index, 271, name, size=12))
    parts += lines(180, 304, "The token goes behind the patches; image and text", "meet in every block of the tower.")
    return picture(
        334,
        "A caption becomes an image token",
        "A caption with two learned words passes the text tower. The mean of the outputs at its end and at the learned "
        "words goes through two linear maps and becomes one more token behind the patches of the image.",
        *parts,
    )


def _cell(left: float, top: float, width: float, *, marked: bool) -> str:
    return rect(left, top, width, 26, fill=GREEN if marked else PAPER, opacity=0.3 if marked else 1, stroke=EDGE)
