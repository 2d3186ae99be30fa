"""The readout: global tokens read the semantic tokens of all bands; those of a missing band take no part."""

from docs.figures.layers.drawing import BANDS, CARD, EDGE, LINE, PAPER, SOFT, circle, path, picture, rect, text

NAMES = ("RGB", "NIR", "TIR")


def draw() -> str:
    parts = [
        text(50, 28, "globals", bold=True),
        text(190, 28, "tokens, with keep", bold=True),
        text(318, 28, "result", bold=True),
    ]
    for band, (name, colour) in enumerate(zip(NAMES, BANDS, strict=True)):
        y, missing = 72 + 76 * band, name == "TIR"
        fill, stroke = _paint(colour, missing)
        parts += _tokens(y, colour, missing)
        parts += [
            circle(50, y, 13, fill=fill, stroke=stroke),
            text(50, y + 30, name, size=12, fill=SOFT),
            circle(318, y, 13, fill=fill, stroke=stroke),
        ]
        if missing:
            parts.append(text(312, y + 30, "no meaning", size=12, fill=SOFT))
        else:
            parts.append(circle(318, y, 5, fill=CARD))
            parts.append(path([(66, y), (128, y)], thick=1.2))
            parts += [path([(252, 72 + 76 * other), (302, y)], head="head", thick=1.2) for other in (0, 1)]
    parts.append(text(180, 282, "keep is False for the tokens of a band that is missing:", size=12, fill=SOFT))
    parts.append(text(180, 298, "they are not read, whatever they hold.", size=12, fill=SOFT))
    return picture(
        312,
        "Global tokens read the semantic tokens that are kept",
        "Global tokens of three bands on the left, five semantic tokens of each band in the middle. The tokens of the "
        "missing thermal band are left out by keep; the results of the other two bands read all tokens that are kept.",
        *parts,
    )


def _paint(colour: str, missing: bool) -> tuple[str, str]:
    """Fill and stroke: what is missing is an outline."""
    return ("none", EDGE) if missing else (colour, "none")


def _tokens(y: float, colour: str, missing: bool) -> list[str]:
    fill, stroke = _paint(colour, missing)
    box = rect(128, y - 18, 124, 36, fill="none" if missing else PAPER, stroke=EDGE if missing else LINE, radius=6)
    return [box, *(rect(136 + 22.5 * token, y - 9, 18, 18, radius=3, fill=fill, stroke=stroke) for token in range(5))]
