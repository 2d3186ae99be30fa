"""What `modulate` changes in a vision transformer, and what it leaves alone."""

from docs.figures.layers.drawing import EDGE, FAINT, GREEN, INK, PAPER, SOFT, code, path, picture, rect, text


def draw() -> str:
    parts = [
        text(100, 28, "your ViT", bold=True),
        text(262, 28, "modulate(vit)", bold=True),
        *_tower(36, modulated=False),
        *_tower(198, modulated=True),
        path([(170, 160), (192, 160)], head="head", thick=2),
        code(102, 316, "tokens"),
        code(228, 316, "tokens"),
        code(302, 316, "foreground", fill=GREEN),
        text(180, 342, "Weights and their names stay. Without a mask", size=12, fill=SOFT),
        text(180, 358, "the original code runs.", size=12, fill=SOFT),
    ]
    return picture(
        372,
        "modulate adds two strengths to each attention and passes the mask through the blocks",
        "On the left three blocks of a vision transformer, each with attention and MLP. On the right the same blocks: "
        "each attention has two new numbers, alpha and beta, and a mask of foreground tokens goes through all blocks.",
        *parts,
    )


def _tower(left: float, *, modulated: bool) -> list[str]:
    parts = [path([(left + 30, 302), (left + 30, 48)], head="head")]
    for block in range(3):
        top = 60 + 80 * block
        parts += [
            rect(left, top, 128, 66, fill=PAPER, stroke=EDGE, radius=6),
            rect(left + 8, top + 6, 112, 22, fill=FAINT),
            text(left + 64, top + 21.5, "MLP"),
            rect(left + 8, top + 36, 112, 24, fill=FAINT, stroke=GREEN if modulated else "none", thick=2),
            text(left + (42.5 if modulated else 64), top + 52.5, "attention", fill=INK),
        ]
        if modulated:
            parts.append(text(left + 96, top + 52.5, "+ α β", fill=GREEN, bold=True))
    if modulated:
        parts.append(path([(left + 104, 302), (left + 104, 286)], stroke=GREEN, thick=2, head="green"))
        for block in (0, 1):
            parts.append(
                path([(left + 104, 219 - 80 * block + 0), (left + 104, 207 - 80 * block)], stroke=GREEN, head="green")
            )
    return parts
