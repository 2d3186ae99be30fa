"""The way of the data from top to bottom, for narrow screens; pipeline.svg shows it from left to right."""

from docs.figures.layers.drawing import BANDS, EDGE, GREEN, PAPER, SOFT, circle, code, path, picture, rect, text

STEPS = (
    ("Images", "several bands, and a mask", "(B, M, 3, H, W)"),
    ("SFM", "foreground attends to foreground", "attention.py"),
    ("STR", "N patches become K + 1 tokens", "reallocation.py"),
    ("CHI", "similar tokens share a hyperedge", "hypergraph.py"),
    ("Readout", "global tokens read these tokens", "fusion.py"),
)
STEP = 88  # from one box to the next


def draw() -> str:
    parts = []
    for index, step in enumerate(STEPS):
        parts += _box(14 + STEP * index, *step)
        parts.append(path([(180, 74 + STEP * index), (180, 100 + STEP * index)], head="head"))
    parts += [
        *_ends(14 + STEP * len(STEPS)),
        path([(58, 132), (30, 132), (30, 394), (56, 394)], head="head"),
        text(24, 268, "G", fill=SOFT, anchor="end", bold=True),
        text(350, 228, "caption", fill=GREEN, anchor="end", size=12),
        path([(334, 212), (306, 212)], stroke=GREEN, head="green"),
        text(190, 446, "U", fill=SOFT, anchor="start", bold=True),
    ]
    return picture(
        534,
        "The way of the data through STMI",
        "From top to bottom: images of several bands and a mask, SFM attention, semantic token reallocation with an "
        "optional caption, the cross-modal hypergraph, the global readout, then losses in training and metrics in "
        "retrieval. The global tokens G go from SFM to the readout.",
        *parts,
    )


def _box(top: float, name: str, what: str, file: str) -> list[str]:
    parts = [
        rect(58, top, 244, 60, fill=PAPER, stroke=EDGE, radius=8),
        text(70, top + 22, name, size=16, anchor="start", bold=True),
        code(292, top + 22, file, anchor="end"),
        text(70, top + 46, what, anchor="start", fill=SOFT),
    ]
    if name == "Images":
        parts += [circle(262 + 13 * band, top + 42, 5, fill=colour) for band, colour in enumerate(BANDS)]
    return parts


def _ends(top: float) -> list[str]:
    parts = []
    for left, name, what, file in (
        (14, "Training", "identity, triplet", "losses.py"),
        (186, "Retrieval", "mAP, CMC, mINP", "metrics.py"),
    ):
        parts.append(rect(left, top, 160, 62, fill=PAPER, stroke=EDGE, radius=8))
        parts.append(text(left + 80, top + 21, name, size=15, bold=True))
        parts.append(text(left + 80, top + 38, what, size=12, fill=SOFT))
        parts.append(code(left + 80, top + 54, file))
    return parts
