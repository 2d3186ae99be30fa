r"""Background consistency (BCC): patches that no modality selected should be alike in all modalities.

Paper: "Magic Tokens: Select Diverse Tokens for Multi-modal Object Re-Identification" (EDITOR), CVPR 2024,
<https://arxiv.org/abs/2403.10254>.
"""

from itertools import combinations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stmi_layers._precision import at_least_float32
from stmi_layers._typing import typed


@typed
def background_consistency(
    patches: Float[Tensor, "batch modalities patches dim"],
    keep: Bool[Tensor, "batch patches"],
    present: Bool[Tensor, "batch modalities"] | None = None,
) -> Float[Tensor, ""]:
    r"""Compute the mean squared difference of the background patches of two modalities, summed over all pairs.

    $$\sum_{m < k} \frac{1}{|V_{mk}| \cdot \text{patches} \cdot \text{dim}} \sum_{b \in V_{mk}}
    \sum_{j \notin \text{keep}_b} \lVert P_{b,m,j} - P_{b,k,j} \rVert^2$$

    $P$ are the `patches`, and $V_{mk}$ the samples in which both modalities are present. As in the paper, the mean is
    over all patches, the kept ones counting as zero: the more a sample keeps, the less it adds.

    Args:
        patches: patches of every modality, before a selection zeroes the patches that are not kept.
        keep: True for the patches that some modality selected, such as the result of `select_tokens`.
        present: True for the modalities that a sample has; None for all.

    Returns:
        The sum, never negative, in at least float32; 0 with a zero gradient when no two modalities can be compared.

    Reference: Zhang et al., "Magic Tokens", CVPR 2024, section "Background Consistency Constraint".

    Examples:
        >>> patches = torch.tensor([[[[1.0], [5.0]], [[3.0], [9.0]]]])  # of two modalities
        >>> background_consistency(patches, torch.tensor([[False, True]]))  # (1 - 3)^2, over two patches
        tensor(2.)
    """
    count = patches.shape[2] * patches.shape[3]
    used = ~keep[:, None, :] if present is None else ~keep[:, None, :] & present[..., None]
    given = torch.where(used[..., None], at_least_float32(patches), 0.0).unbind(1)
    terms = []
    for first, second in combinations(range(len(given)), 2):
        difference = given[first] - given[second]
        samples = max(difference.shape[0], 1)
        if present is not None:
            both = present[:, first] & present[:, second]
            difference = torch.where(both[:, None, None], difference, 0.0)
            samples = both.sum().clamp(min=1)
        terms.append(difference.square().sum() / (samples * max(count, 1)))
    return torch.stack(terms).sum() if terms else given[0][:0].sum()
