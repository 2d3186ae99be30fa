"""Text inversion: a caption becomes the last token of an image."""

from docs.figures.layers.drawing import BLUE, EDGE, GREEN, INK, RGB, SOFT, circle, code, path, picture, rect, text

WORDS = ("An", "image", "of", "a", "X", "X", "car", "end")


def draw() -> str:
    parts = [text(180, 28, "caption with two learned words", bold=True)]
    for index, word in enumerate(WORDS):
        learned, read = word == "X", word in ("X", "end")
        x = 10 + 43 * index
        fill = "#ffffff" if not learned else "#dfeee7"
        parts += [rect(x, 42, 39, 26, fill=fill, stroke=GREEN if learned else EDGE, radius=5), code(x + 19.5, 59, word)]
        if read:
            parts.append(path([(x + 19.5, 70), (180, 104)], head="head"))
    parts += [
        text(58, 108, "text tower, then", size=12, fill=SOFT),
        text(300, 108, "mean of three", size=12, fill=SOFT),
        circle(180, 118, 10, fill=BLUE),
        path([(180, 132), (180, 152)], head="head"),
        rect(110, 156, 140, 30, fill="#ffffff", stroke=EDGE, radius=6),
        text(180, 176, "inverse network", size=12),
        path([(250, 171), (329, 171), (329, 206)], head="head"),
        text(150, 214, "tokens of the image", bold=True),
    ]
    for index in range(9):
        x = 12 + 38 * index
        fill = RGB if index == 0 else (BLUE if index == 8 else "#ffffff")
        parts.append(rect(x, 224, 32, 26, fill=fill, stroke=EDGE, radius=5))
    parts += [
        text(28, 268, "class", size=12, fill=SOFT),
        text(160, 268, "patches", size=12, fill=SOFT),
        text(322, 268, "text", size=12, fill=INK),
    ]
    return picture(
        284,
        "A caption becomes the last token of the image",
        "The outputs of the text tower at two learned words and at the end are averaged; the inverse network turns the "
        "mean into one more token behind the class token and the patches.",
        *parts,
    )
