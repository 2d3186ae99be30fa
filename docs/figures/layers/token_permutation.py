"""Token permutation: whose patches the global token of each modality reads, stage by stage."""

import torch

from docs.figures.layers.drawing import BANDS, EDGE, SOFT, circle, code, lines, path, picture, rect, text
from stmi_layers import TokenPermutation, cyclic_readout

NAMES = ("RGB", "NIR", "TIR")
SHIFTS = (1, 2, 0)


def reads(shift: int) -> list[int]:
    """The modality whose patches each global token reads at this shift: the one its result depends on."""
    patches = torch.eye(4)[:3].reshape(1, 3, 1, 4).repeat(1, 1, 2, 1).requires_grad_()
    eye = torch.eye(4)
    result = cyclic_readout(torch.ones(1, 3, 4), patches, eye, eye, eye, num_heads=1, shift=shift)
    found = []
    for modality in range(3):
        (gradient,) = torch.autograd.grad(result[0, modality].sum(), patches, retain_graph=True)
        found.append(int(gradient[0].abs().sum(dim=(1, 2)).argmax()))
    return found


def depends(present: tuple[bool, bool, bool]) -> list[list[bool]]:
    """Whether the result of each modality depends on the patches of each, with these modalities present."""
    torch.manual_seed(0)
    layer = TokenPermutation(4, num_modalities=3, num_heads=1)
    patches = torch.randn(1, 3, 5, 4).requires_grad_()
    result = layer(torch.randn(1, 3, 4), patches, torch.tensor([present]))
    rows = []
    for modality in range(3):
        (gradient,) = torch.autograd.grad(result[0, modality].sum(), patches, retain_graph=True)
        rows.append((gradient[0].abs().sum(dim=(1, 2)) > 0).tolist())
    return rows


def draw() -> str:
    seen = depends((True, True, False))
    parts = [text(180, 26, "all present", bold=True), *_heads(44)]
    for modality in range(3):
        parts += _row(62 + 40 * modality, modality, [True] * 3)
    parts += [text(180, 208, "TIR absent", bold=True)]
    for modality in range(3):
        parts += _row(222 + 40 * modality, modality, seen[modality])
    parts += lines(
        180, 360, "Each stage reads the patches of one modality,", "its own last. Absent patches are passed over."
    )
    return picture(
        390,
        "Global tokens walk round the modalities",
        "Three stages. In the first the global token of RGB reads the patches of near infrared, in the second those of "
        "the thermal image, in the third its own; likewise for the others. Without the thermal image its patches are "
        "passed over, and its own result is 0.",
        *parts,
    )


def _heads(y: float) -> list[str]:
    places = ((128, "stage 1"), (208, "stage 2"), (288, "stage 3"))
    return [text(x, y, name, size=12, fill=SOFT) for x, name in places]


def _row(top: float, modality: int, seen: list[bool]) -> list[str]:
    there = any(seen)
    parts = [
        code(20, top + 21, NAMES[modality], anchor="start"),
        circle(68, top + 16, 12, fill=BANDS[modality] if there else "none", stroke=EDGE),
    ]
    for stage, shift in enumerate(SHIFTS):
        other, left = reads(shift)[modality], 106 + 80 * stage
        fill = BANDS[other] if seen[other] else "none"
        parts += [rect(left + 11 * patch, top + 6, 9, 20, fill=fill, stroke=EDGE, thick=0.5) for patch in range(4)]
        parts.append(path([(left - 22, top + 16), (left - 6, top + 16)], head="head"))
    parts.append(path([(312, top + 16), (324, top + 16)], head="head"))
    end = circle(338, top + 16, 12, fill=BANDS[modality]) if there else text(338, top + 21, "0", bold=True)
    return [*parts, end]
