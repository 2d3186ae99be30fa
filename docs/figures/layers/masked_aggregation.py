"""Masked aggregation: which tokens a token depends on, within a modality and across all."""

import torch

from docs.figures.layers.drawing import BANDS, EDGE, PAPER, lines, picture, rect, text
from stmi_layers import MaskedAggregation

TOKENS = 5  # a global token and four patches
KEEP = torch.tensor([[True, True, False, True, False]]).expand(1, 3, -1)


def depends(step: str) -> torch.Tensor:
    """Bool (tokens, tokens): whether the result of a row changes with the token of a column."""
    torch.manual_seed(0)
    layer = getattr(MaskedAggregation(4, num_modalities=3, num_heads=1), step)
    tokens = torch.randn(1, 3, TOKENS, 4)
    jacobian = torch.autograd.functional.jacobian(lambda given: layer(given, KEEP), tokens)
    return (jacobian.abs().sum(dim=(0, 3, 4, 7)) > 0).reshape(3 * TOKENS, 3 * TOKENS)


def draw() -> str:
    parts = [
        *_matrix(25, depends("within"), "within a modality"),
        *_matrix(198, depends("across"), "across modalities"),
        *lines(
            180,
            250,
            "A cell is filled where the token of the row reads",
            "that of the column. Two of four patches are kept;",
            "the others are not read, and their results are 0.",
        ),
    ]
    return picture(
        298,
        "Kept tokens attend within a modality, then across all",
        "Two matrices of fifteen tokens, five of each of three modalities, three of them kept. In the first step kept "
        "tokens read the kept tokens of their own modality, in the second those of all modalities.",
        *parts,
    )


def _matrix(left: float, pattern: torch.Tensor, name: str) -> list[str]:
    top, parts = 66, [text(left + 74, 28, name, bold=True)]
    for index, kept in enumerate(KEEP.flatten().tolist()):
        fill = BANDS[index // TOKENS] if kept else "none"
        parts.append(rect(left + _at(index), top - 15, 8, 8, fill=fill, stroke=EDGE, thick=0.5))
        parts.append(rect(left - 13, top + _at(index), 8, 8, fill=fill, stroke=EDGE, thick=0.5))
    for row, entries in enumerate(pattern.tolist()):
        for column, entry in enumerate(entries):
            box = (left + _at(column), top + _at(row), 8, 8)
            parts.append(rect(*box, fill=BANDS[column // TOKENS] if entry else PAPER, radius=1))
    return parts


def _at(index: int) -> float:
    """Place of a token on either side of the matrix, with a gap between modalities."""
    return 9.5 * index + 4 * (index // TOKENS)
