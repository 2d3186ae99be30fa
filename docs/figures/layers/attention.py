"""SFM: the logits of a foreground query and of a background query, before and after."""

import torch

from docs.figures.layers.drawing import BLUE, CARD, GREEN, LINE, SOFT, circle, code, path, picture, text
from stmi_layers import modulate_logits

FOREGROUND = torch.tensor([[True, True, True, False, False, False]])
LOGITS = torch.tensor([[2.0, 1.0, 0.0, 3.0, 1.0, -1.0]])  # one query's, against the six keys
STRENGTH = torch.tensor([0.5])
KEYS = ("class", "fore", "fore", "back", "back", "back")


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """The logits of a foreground query and of a background query after the modulation, (keys) each."""
    every_query = LOGITS.expand(1, 1, 6, 6)
    modulated = modulate_logits(every_query, FOREGROUND, STRENGTH, STRENGTH)[0, 0]
    return modulated[1], modulated[5]


def foreground_share(logits: torch.Tensor) -> float:
    return logits.softmax(0)[FOREGROUND[0]].sum().item()


def draw() -> str:
    before, (of_foreground, of_background) = LOGITS[0], rows()
    parts = [
        *_panel(14, "A query in the foreground", before, of_foreground),
        *_panel(222, "A query in the background", before, of_background),
        circle(30, 432, 4.5, stroke=LINE, thick=1.5),
        text(40, 436.5, "before", anchor="start", fill=SOFT),
        circle(106, 432, 5, fill=GREEN),
        text(116, 436.5, "after: both foreground", anchor="start", fill=SOFT),
        circle(284, 432, 5, fill=BLUE),
        text(294, 436.5, "others", anchor="start", fill=SOFT),
    ]
    return picture(
        450,
        "SFM moves logits towards the maximum or the minimum of their row",
        "Six logits of one query before and after the modulation with alpha = beta = 0.5. In the row of a foreground "
        "query the foreground keys move half the way to the row maximum, the background keys half the way to the row "
        "minimum. In the row of a background query all move half the way to the minimum.",
        *parts,
    )


def _panel(top: float, name: str, before: torch.Tensor, after: torch.Tensor) -> list[str]:
    parts = [text(14, top + 12, name, anchor="start", size=14, bold=True)]
    shares = f"{foreground_share(before):.2f} → {foreground_share(after):.2f}"
    parts.append(text(14, top + 30, f"weight on foreground keys {shares}", anchor="start", fill=SOFT))

    def height(logit: float) -> float:
        return top + 58 + (3 - logit) * 26

    for level, label in ((before.max(), "max"), (before.min(), "min")):
        y = height(level.item())
        parts.append(path([(48, y), (346, y)], dashed=True, thick=1))
        parts.append(text(42, y + 4.5, label, anchor="end", fill=SOFT))
    for column, (start, stop) in enumerate(zip(before.tolist(), after.tolist(), strict=True)):
        x = 72 + 50 * column
        colour = GREEN if FOREGROUND[0, column] and "foreground" in name else BLUE
        if start != stop:
            end = height(stop) + (7 if stop > start else -7)
            parts.append(path([(x, height(start)), (x, end)]))
        parts.append(circle(x, height(start), 4.5, fill=CARD, stroke=LINE, thick=1.5))
        parts.append(circle(x, height(stop), 5, fill=colour))
        base = height(stop) + (-6 if stop == before.min() else 4.5)
        parts.append(text(x + 8, base, f"{stop:g}", anchor="start"))
        parts.append(code(x, top + 186, KEYS[column], size=12, fill=GREEN if FOREGROUND[0, column] else BLUE))
    return parts
