"""Adapters and prompts: what is added to one block of a frozen tower."""

from docs.figures.layers.drawing import BANDS, EDGE, GREEN, LINE, SOFT, circle, code, path, picture, rect, text


def draw() -> str:
    parts = [text(180, 26, "one block of a frozen tower", bold=True)]
    for group, (name, colour) in enumerate(zip(("RGB", "NIR", "TIR"), BANDS, strict=True)):
        left = 12 + 56 * group
        parts += [rect(left + 13 * n, 40, 11, 20, fill=colour, radius=3) for n in range(4)]
        parts.append(text(left + 25, 76, name, size=12, fill=SOFT))
    parts += [rect(186 + 16 * n, 40, 13, 20, fill="#ffffff", stroke=EDGE, radius=3) for n in range(10)]
    parts += [
        text(266, 76, "tokens of an RGB image", size=12, fill=SOFT),
        path([(180, 82), (180, 104)], head="head"),
        rect(110, 106, 140, 28, fill="#ffffff", stroke=EDGE, radius=6),
        text(180, 124, "norm, attention", size=12),
        path([(180, 134), (180, 176)], head="head"),
        path([(180, 148), (292, 148), (292, 176)], head="green", stroke=GREEN),
        path([(180, 148), (62, 148), (62, 236), (166, 236)], head="head", stroke=LINE),
        rect(110, 178, 140, 28, fill="#ffffff", stroke=EDGE, radius=6),
        text(180, 196, "norm, MLP", size=12),
        rect(262, 178, 84, 28, fill="#dfeee7", stroke=GREEN, radius=6),
        text(304, 196, "adapter", size=12),
        path([(180, 206), (180, 224)], head="head"),
        path([(292, 206), (292, 236), (194, 236)], head="green", stroke=GREEN),
        circle(180, 236, 11, fill="#ffffff", stroke=LINE),
        code(180, 240, "+"),
        path([(180, 248), (180, 268)], head="head"),
        text(180, 286, "prompts are cut off, their mean goes to the next block", size=12, fill=SOFT),
        text(180, 304, "coloured and green: new, and all that learns", size=12, fill=SOFT),
    ]
    return picture(
        318,
        "Prompts join the tokens of a block, an adapter its feed-forward network",
        "Twelve prompts of three modalities stand in front of the tokens. Behind attention, the feed-forward network "
        "and the adapter read the same tokens; both results are added.",
        *parts,
    )
