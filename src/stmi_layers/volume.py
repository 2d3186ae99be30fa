r"""Volumes that the features of several modalities span.

Equations 20-21 of Signal, the paper "Signal: Selective Interaction and Global-Local Alignment for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2511.17965>. The loss that shrinks the volumes is in
`alignment.py`.
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
    r"""Compute the volume that one sample's anchor and another sample's other modalities span (eq. 20-21).

    $$V_{ij} = \sqrt{\det G_{ij}} = \lVert a_i \wedge u_j \wedge x_j \wedge \dots \rVert$$

    $G_{ij}$ is the Gram matrix of $a_i$, the feature of the modality `anchor` of sample $i$, and of $u_j, x_j, \dots$,
    the features of all other modalities of sample $j$. The code computes no determinant. It subtracts the base $u_j$
    from the other vectors, which changes no volume and keeps all digits of nearly equal features; Gram-Schmidt then
    gives lengths whose product is the volume. The gradient of a feature is at most as long as the product of the
    lengths of the other features, and 0 where the volume is 0, where the gradient of $\sqrt{\det}$ would be NaN.

    Args:
        features: any vectors, of at least two modalities; unit vectors span at most 1.
        anchor: index of the modality that is combined with other samples.
        present: True for the modalities that a sample has; None for all. Absent features are left out of a volume.

    Returns:
        The volumes, in at least float32. Rows stand for the sample of the anchor, columns for the sample of all other
        modalities.

    Raises:
        ValueError: when there is only one modality, or `anchor` is not the index of a modality.

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
        raise ValueError(f"anchor must be the index of a modality, 0 to {modalities - 1}; received {anchor}")
    with without_autocast(features):
        features = at_least_float32(features)
        if present is not None:
            features = torch.where(present[..., None], features, 0.0)
        # A compiler needs plain operations, which it fuses itself.
        if features.requires_grad and not torch.compiler.is_compiling():
            return ExchangedVolumes.apply(features, anchor, present)[0]
        return exchanged_volumes(features, anchor, present)[0]
