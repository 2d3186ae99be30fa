r"""Losses of predicted masks, and of tokens that should represent the object under a mask.

The losses are for systems that find and segment the object at once, such as FusionSegReID / PS-ReID
(<https://arxiv.org/abs/2503.21595>). The formulas of that paper are not public: the formulas here are our own reading
of its summary, with the usual weights of reasoning segmentation.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed

EPSILON = 1e-6


@typed
def mask_loss(
    logits: Float[Tensor, "batch height width"],
    mask: Float[Tensor, "batch height width"] | Bool[Tensor, "batch height width"],
    *,
    bce_weight: float = 2.0,
    dice_weight: float = 0.5,
    smoothing: float = 1.0,
    present: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Add the binary cross-entropy of every pixel and the Dice loss of the whole mask.

    $$\text{bce\_weight} \cdot \operatorname{BCE}(p, m)
    + \text{dice\_weight} \cdot \Big( 1 - \frac{2 \sum p\, m + \text{smoothing}}{\sum p + \sum m + \text{smoothing}}
    \Big), \qquad p = \operatorname{sigmoid}(\text{logits})$$

    Cross-entropy weights all pixels alike, and Dice weights small objects as much as large ones. Both are computed in
    at least float32.

    Args:
        logits: predicted masks before the sigmoid.
        mask: $m$, True or the probability of foreground between 0 and 1.
        bce_weight: factor of the cross-entropy, at least 0.
        dice_weight: factor of the Dice loss, at least 0.
        smoothing: number above 0, added to numerator and denominator, so that an empty prediction of an empty mask
            costs nothing.
        present: True for the samples that have a mask; None for all.

    Returns:
        The mean over the samples with a mask, in at least float32; 0 when no sample has a mask.

    Raises:
        ValueError: when a weight is negative or `smoothing` is not positive.

    Examples:
        >>> logits, mask = torch.zeros(1, 1, 2), torch.tensor([[[True, False]]])
        >>> mask_loss(logits, mask, bce_weight=0.0, dice_weight=1.0)  # 1 - (2 * 0.5 + 1) / (1 + 1 + 1)
        tensor(0.3333)
    """
    if not (bce_weight >= 0 and dice_weight >= 0 and smoothing > 0):
        received = f"bce_weight={bce_weight}, dice_weight={dice_weight}, smoothing={smoothing}"
        raise ValueError(f"bce_weight and dice_weight must be at least 0, smoothing above 0; received {received}")
    if present is not None:
        logits, mask = (torch.where(present[:, None, None], item, False) for item in (logits, mask))
    with without_autocast(logits):
        wide = at_least_float32(logits).flatten(1)
        target = mask.to(wide.dtype).flatten(1)
        bce = F.binary_cross_entropy_with_logits(wide, target, reduction="none").mean(dim=1)
        share = wide.sigmoid()
        overlap, size = 2 * (share * target).sum(dim=1), share.sum(dim=1) + target.sum(dim=1)
        dice = 1 - (overlap + smoothing) / (size + smoothing)
        return _mean(bce_weight * bce + dice_weight * dice, present)


@typed
def mask_coupling_loss(
    tokens: Float[Tensor, "batch tokens dim"],
    patches: Float[Tensor, "batch patches dim"],
    mask: Float[Tensor, "batch patches"] | Bool[Tensor, "batch patches"],
    *,
    present: Bool[Tensor, " batch"] | None = None,
) -> Float[Tensor, ""]:
    r"""Compute the cosine distance of tokens from the mean of the patches under a mask.

    $$1 - \cos\Big(\text{tokens}_k,\ \frac{\sum_n \text{mask}_n\, \text{patches}_n}{\sum_n \text{mask}_n}\Big)$$

    Args:
        tokens: tokens that should represent the object.
        patches: patches of the same image.
        mask: share of each patch that is foreground, True or between 0 and 1.
        present: True for the samples that take part; None for all.

    Returns:
        The mean over tokens and samples, in at least float32, between 0 and 2. Samples with an empty mask do not count;
        0 when no sample counts.

    Examples:
        >>> patches = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
        >>> mask_coupling_loss(patches[:, :1], patches, torch.tensor([[True, False]]))
        tensor(0.)
        >>> mask_coupling_loss(patches[:, :1], patches, torch.tensor([[False, True]]))
        tensor(1.)
    """
    if present is not None:
        tokens, patches = (torch.where(present[:, None, None], item, 0.0) for item in (tokens, patches))
        mask = torch.where(present[:, None], mask, False)
    with without_autocast(tokens):
        weights = mask.to(torch.promote_types(patches.dtype, torch.float32))
        filled = weights.sum(dim=1) > 0
        # The sum replaces the mean, because both have one direction and the cosine ignores length.
        summed = torch.einsum("bn, bnd -> bd", weights, at_least_float32(patches))
        summed = torch.where(filled[:, None], summed, 1.0)[:, None]
        cosine = F.cosine_similarity(at_least_float32(tokens), summed, dim=2, eps=EPSILON)
        return _mean(1 - cosine.mean(dim=1), filled)


def _mean(losses: Tensor, present: Tensor | None) -> Tensor:
    """Return the mean over the samples present; 0 when there is none, as in an empty batch."""
    kept = torch.ones_like(losses, dtype=torch.bool) if present is None else present
    return torch.where(kept, losses, 0.0).sum() / kept.sum().clamp(min=1)
