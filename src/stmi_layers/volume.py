r"""Volumes that the features of several modalities span.

Equations 20-21 of Signal, the paper "Signal: Selective Interaction and Global-Local Alignment for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2511.17965>. The loss that shrinks them is in `alignment.py`.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed
from stmi_layers.kernels.volume import ExchangedVolumes, exchanged_volumes


@typed
def gram_volume(
    features: Float[Tensor, "batch modalities dim"],
    *,
    anchor: int = 0,
    present: Bool[Tensor, "batch modalities"] | None = None,
) -> Float[Tensor, "batch batch"]:
    r"""Volume of the parallelotope of one sample's anchor and another sample's other modalities (eq. 20-21).

    $$V_{ij} = \sqrt{\det G_{ij}} = \lVert a_i \wedge u_j \wedge x_j \wedge \dots \rVert$$

    $G_{ij}$ is the Gram matrix of $a_i$, the feature of the modality `anchor` of sample $i$, and of $u_j, x_j, \dots$,
    the features of all other modalities of sample $j$. It is computed without a determinant: the base $u_j$ is
    subtracted from the others, which changes no volume and keeps all digits of features that are nearly equal, and
    Gram-Schmidt gives the lengths whose product is the volume. The gradient with respect to a feature is at most as
    long as the product of the lengths of the others, and 0 where the volume is 0; that of $\sqrt{\det}$ is NaN there.

    Args:
        features: any vectors; unit vectors span at most 1. At least two modalities.
        anchor: the modality that is combined with other samples.
        present: True for the modalities that a sample has; None for all. The volume is that of the features there are.

    Returns:
        The volumes in at least float32: sample of the anchor in the rows, sample of the others in the columns.

    Raises:
        ValueError: when there is one modality only, or no modality `anchor`.

    Examples:
        >>> features = torch.tensor([[[1.0, 0.0], [1.0, 0.0]], [[0.6, 0.8], [0.0, 1.0]]])
        >>> gram_volume(features)  # two modalities: the sines of the angles
        tensor([[0.0000, 1.0000],
                [0.8000, 0.6000]])
    """
    modalities = features.shape[1]
    if modalities < 2:
        raise ValueError(f"features must hold at least 2 modalities; received shape {tuple(features.shape)}")
    if not 0 <= anchor < modalities:
        raise ValueError(f"anchor must count the modalities from 0 to {modalities - 1}; received {anchor}")
    rest = [modality for modality in range(modalities) if modality != anchor]
    with without_autocast(features):
        features = at_least_float32(features)
        there = None
        if present is not None:
            features = torch.where(present[..., None], features, 0.0)
            there = [present[:, modality] for modality in rest]
        each = features.unbind(1)
        vectors, counts = _differences([each[modality] for modality in rest], there)
        arguments = each[anchor], vectors, counts, None if present is None else present[:, anchor]
        # A compiler wants plain operations, which it fuses itself.
        plain = torch.compiler.is_compiling() or not features.requires_grad
        return (exchanged_volumes if plain else ExchangedVolumes.apply)(*arguments)[0]


def _differences(others: list[Tensor], there: list[Tensor] | None) -> tuple[Tensor, Tensor | None]:
    """Subtract the first of the vectors that is there, the base, from the others; the base comes first."""
    if there is None:
        base, *rest = others
        return torch.stack([base, *(vector - base for vector in rest)]), None
    counts = torch.stack(there)
    vectors = torch.stack(others)
    first = counts & (counts.cumsum(dim=0) == 1)
    base = (vectors * first[..., None]).sum(dim=0, keepdim=True)
    rest = counts & ~first
    vectors = torch.cat([base, torch.where(rest[..., None], vectors - base, 0.0)])
    return vectors, torch.cat([counts.any(dim=0, keepdim=True), rest])
