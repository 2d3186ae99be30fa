"""Plain SVG on a card as narrow as a phone, light or dark as the page it is on.

Attributes hold the light colours. A style exchanges them for the dark ones where the page is dark: for an SVG in an
`<img>`, browsers read `prefers-color-scheme` from the `color-scheme` of the page.
"""

import re
from html import escape

WIDTH = 360
INK, SOFT, EDGE, CARD, LINE = "#1d2733", "#3d4a5a", "#8a97a8", "#eef1f6", "#5d6b7e"
RGB, NIR, TIR = "#d9694a", "#8f63b8", "#d99a1e"  # the colours of the bands, as in pipeline.svg
BANDS = (RGB, NIR, TIR)
GREEN, BLUE, RED = "#2f7d5b", "#5f7ea8", "#b3372b"
PAPER, FAINT, GREY = "#ffffff", "#dde3ec", "#aeb9c7"  # boxes, boxes of no account, background of an image

DARK = {
    INK: "#e6ebf2",
    SOFT: "#bcc6d4",
    EDGE: "#6d7b90",
    CARD: "#262b37",
    LINE: "#96a3b6",
    PAPER: "#1a1e28",
    FAINT: "#363e4d",
    GREY: "#4d586a",
    RGB: "#dd7a5c",
    NIR: "#a27ac9",
    TIR: "#d39a2b",
    GREEN: "#3d8a66",
    BLUE: "#6f92c4",
    RED: "#cf5f52",
}
DARK_TEXT = {GREEN: "#6cc49b", BLUE: "#9dbbe6", RED: "#f0897c", RGB: "#e88c70", NIR: "#b894da", TIR: "#dba845"}

STYLE = """text { font-family: system-ui, "Segoe UI", Helvetica, Arial, sans-serif; }
.code { font-family: ui-monospace, Menlo, Consolas, monospace; }"""


def picture(height: float, title: str, description: str, *parts: str, width: float = WIDTH) -> str:
    """The whole file: a card with `parts` on it, a title and a description for who cannot see it."""
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_round(width)} {_round(height)}" role="img" '
        'aria-labelledby="title description">',
        f'<title id="title">{escape(title)}</title>',
        f'<desc id="description">{escape(description)}</desc>',
        f"<style>\n{STYLE}\n{_dark()}\n</style>",
        _marker("head", LINE),
        _marker("green", GREEN),
        _marker("red", RED),
        rect(1, 1, width - 2, height - 2, fill=CARD, stroke=EDGE, radius=8),
        *parts,
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def heat(
    left: float,
    top: float,
    weights: list[list[float]],
    *,
    cell: tuple[float, float] = (16, 16),
    fill: str = BLUE,
    most: float | None = None,
) -> list[str]:
    """Rows of cells, the fuller the greater the weight; `most` is full, the greatest weight by default."""
    most = most or max(max(row) for row in weights) or 1.0
    parts = []
    for y, row in enumerate(weights):
        for x, weight in enumerate(row):
            box = (left + cell[0] * x, top + cell[1] * y, cell[0] - 2, cell[1] - 2)
            parts.append(rect(*box, fill=PAPER, stroke=EDGE, thick=0.5))
            if weight > 0:
                parts.append(rect(*box, fill=fill, opacity=weight / most))
    return parts


def lines(x: float, y: float, *contents: str, anchor: str = "middle") -> list[str]:
    """Small lines of text below each other: the caption of a picture."""
    return [text(x, y + 16 * row, content, size=12, fill=SOFT, anchor=anchor) for row, content in enumerate(contents)]


def _dark() -> str:
    """Style of a dark page: each light colour becomes its dark counterpart."""
    rules = [
        f'[{paint}="{light}"] {{ {paint}: {dark}; }}' for light, dark in DARK.items() for paint in ("fill", "stroke")
    ]
    rules += [f'text[fill="{light}"] {{ fill: {dark}; }}' for light, dark in DARK_TEXT.items()]
    return "@media (prefers-color-scheme: dark) {\n" + "\n".join(rules) + "\n}"


def text(
    x: float, y: float, content: str, *, size: float = 13, anchor: str = "middle", fill: str = INK, bold: bool = False
) -> str:
    weight = ' font-weight="700"' if bold else ""
    start = f'<text x="{_round(x)}" y="{_round(y)}" font-size="{_round(size)}" text-anchor="{anchor}"'
    content = escape(re.sub(r"(?<!\w)-(?=[\d ])", "−", content))  # a minus sign
    return f'{start} fill="{fill}"{weight}>{content}</text>'


def code(x: float, y: float, content: str, *, size: float = 12, anchor: str = "middle", fill: str = INK) -> str:
    return text(x, y, content, size=size, anchor=anchor, fill=fill).replace("<text ", '<text class="code" ', 1)


def rect(
    x: float,
    y: float,
    width: float,
    height: float,
    *,
    fill: str = "none",
    stroke: str = "none",
    radius: float = 2,
    opacity: float = 1,
    thick: float = 1,
) -> str:
    box = f'x="{_round(x)}" y="{_round(y)}" width="{_round(width)}" height="{_round(height)}" rx="{_round(radius)}"'
    return f'<rect {box} fill="{fill}" fill-opacity="{_round(opacity, 3)}" stroke="{stroke}" stroke-width="{thick}"/>'


def circle(
    x: float, y: float, radius: float, *, fill: str = "none", stroke: str = "none", thick: float = 1, opacity: float = 1
) -> str:
    centre = f'cx="{_round(x)}" cy="{_round(y)}" r="{_round(radius)}"'
    paint = f'fill="{fill}" fill-opacity="{_round(opacity, 3)}" stroke="{stroke}" stroke-width="{thick}"'
    return f"<circle {centre} {paint}/>"


def path(
    points: list[tuple[float, float]],
    *,
    stroke: str = LINE,
    thick: float = 1.5,
    head: str = "",
    dashed: bool = False,
    fill: str = "none",
    opacity: float = 1,
) -> str:
    """A line through `points`; `head` is "head", "green" or "red" for an arrow."""
    way = "M" + " L".join(f"{_round(x)} {_round(y)}" for x, y in points) + (" Z" if fill != "none" else "")
    extra = f' marker-end="url(#{head})"' if head else ""
    extra += ' stroke-dasharray="4 3"' if dashed else ""
    extra += ' stroke-linejoin="round" stroke-linecap="round"' if fill != "none" else ""
    paint = f'fill="{fill}" stroke="{stroke}" stroke-width="{thick}" opacity="{_round(opacity, 3)}"'
    return f'<path d="{way}" {paint}{extra}/>'


def _marker(name: str, colour: str) -> str:
    shape = f'<path d="M0 0 L8 4 L0 8 Z" fill="{colour}"/>'
    box = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" markerUnits="userSpaceOnUse"'
    return f'<defs><marker id="{name}" {box} orient="auto">{shape}</marker></defs>'


def _round(number: float, digits: int = 1) -> str:
    return f"{round(float(number), digits) + 0.0:g}"
