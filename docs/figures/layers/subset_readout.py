"""Subset readout: what the query of each subset reads, with all modalities and without the thermal image."""

import torch

from docs.figures.layers.drawing import BANDS, FAINT, code, heat, lines, picture, rect, text
from stmi_layers import modality_subsets, subset_attention

LETTERS = "RNT"
SUBSETS = modality_subsets(3)
# What each of four tokens shows, by hand: head, body, legs, background, a little different in every modality.
TOKENS = 3.0 * torch.eye(4)[torch.tensor([[0, 1, 2, 3], [0, 1, 1, 3], [1, 2, 3, 3]])][None]
ROWS = torch.tensor(
    [[1.0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 1, 1, 0], [1, 1, 1, 0]]
)


def attention(present: tuple[bool, bool, bool]) -> torch.Tensor:
    """Weights (subsets, modalities, tokens)."""
    weights = subset_attention(TOKENS, ROWS[:, None], SUBSETS, present=torch.tensor([present]))
    return weights[0, :, 0]


def draw() -> str:
    parts = [text(128, 28, "all present", bold=True), text(278, 28, "TIR absent", bold=True)]
    for left, present in ((60, (True, True, True)), (210, (True, True, False))):
        weights = attention(present)
        for band, letter in enumerate(LETTERS):
            parts.append(text(left + 46 * band + 22, 48, letter, fill=BANDS[band], bold=True))
        for subset in range(7):
            parts += _row(left, 58 + 26 * subset, weights[subset], SUBSETS[subset].tolist())
    parts += [code(34, 74 + 26 * subset, name(subset), size=13) for subset in range(7)]
    parts += lines(
        180,
        264,
        "One query per subset reads the tokens of its members;",
        "its weights sum to 1. Without the thermal image T is",
        "empty, and RT, NT and RNT read the others.",
    )
    return picture(
        312,
        "One query per subset of the modalities",
        "Seven rows, one per subset of R, N and T, with the weights of its query over four tokens of each member. On "
        "the right the thermal image is absent: the row of T is empty, and the other rows read the members left.",
        *parts,
    )


def name(subset: int) -> str:
    return "".join(letter for letter, member in zip(LETTERS, SUBSETS[subset].tolist(), strict=True) if member)


def _row(left: float, top: float, weights: torch.Tensor, members: list[bool]) -> list[str]:
    parts = []
    for band, member in enumerate(members):
        if member:
            parts += heat(left + 46 * band, top, [weights[band].tolist()], cell=(11, 22), most=0.7)
        else:
            parts.append(rect(left + 46 * band, top + 8, 42, 4, fill=FAINT))
    return parts
