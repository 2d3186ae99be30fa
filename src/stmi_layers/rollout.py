r"""Attention rollout, the attention of the global token through all layers, and the selection of tokens by it (SFTS).

Paper: "Magic Tokens: Select Diverse Tokens for Multi-modal Object Re-Identification" (EDITOR), CVPR 2024,
<https://arxiv.org/abs/2403.10254>. Rollout: Abnar and Zuidema, ACL 2020, <https://arxiv.org/abs/2005.00928>.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stmi_layers._checks import check_positive
from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed
from stmi_layers.selection import top_tokens


@typed
def attention_rollout(
    *maps: Float[Tensor, "*batch heads tokens tokens"], prefix_tokens: int = 1
) -> Float[Tensor, "*batch heads patches"]:
    r"""Follow the attention of the global token back through all layers, head by head.

    $$\text{result} = \big( A_L\, A_{L-1} \cdots A_1 \big)_{\text{row } 0,\ \text{columns of the patches}}$$

    $A_l$ are the `maps` in the order of the layers. The code computes only one row of the product, as row vector times
    matrix from the last layer to the first. The full product would take more operations by a factor of the number of
    tokens.

    Differences from Abnar and Zuidema: no identity is added for the residual connections, and heads are not averaged,
    as in EDITOR. The result carries no gradient, because it only selects tokens.

    Args:
        maps: attention weights of one layer each, first layer first; rows sum to 1, and the global token comes first.
        prefix_tokens: number of tokens before the patches, the global token included; at least 1.

    Returns:
        Weights of the patches, in at least float32, never negative; the weights of a head sum to at most 1.

    Raises:
        ValueError: when there are no maps, or `prefix_tokens` leaves no patch.

    Reference: Zhang et al., "Magic Tokens", CVPR 2024, section "Spatial-Frequency Token Selection".

    Examples:
        >>> first = torch.tensor([[[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.5, 0.5]]])  # of one head
        >>> last = torch.tensor([[[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
        >>> attention_rollout(first, last)  # the global token saw patch 0, which had seen patch 1
        tensor([[0., 1.]])
    """
    if not maps:
        raise ValueError("maps must hold the attention of at least one layer; received none")
    tokens = maps[0].shape[-1]
    if not 1 <= prefix_tokens < tokens:
        raise ValueError(f"prefix_tokens must lie in 1 to {tokens - 1}; received {prefix_tokens}")
    with torch.no_grad(), without_autocast(maps[0]):
        *earlier, last = maps
        row = at_least_float32(last[..., :1, :])
        for attention in reversed(earlier):
            row = row @ at_least_float32(attention)
    return row[..., 0, prefix_tokens:]


@typed
def select_tokens(
    scores: Float[Tensor, "batch modalities heads patches"],
    num: int,
    present: Bool[Tensor, "batch modalities"] | None = None,
) -> Bool[Tensor, "batch patches"]:
    r"""Keep every patch that is among the `num` best patches of any head of any modality.

    $$\text{keep}_j = \exists\, m, h: j \in \operatorname{top}_{\text{num}}(\text{scores}_{m,h})$$

    Args:
        scores: scores of the patches, such as the `attention_rollout` of every modality.
        num: number of patches that a head selects, from 1 to the number of patches; not a share, which would round.
        present: True for the modalities that select; None for all.

    Returns:
        One mask per sample for all of its modalities, True for between `num` and `num * modalities * heads` patches. Of
        equal scores the first patches win. No patch is kept where no modality is present.

    Raises:
        ValueError: when `num` is not between 1 and the number of patches.

    Reference: Zhang et al., "Magic Tokens", CVPR 2024, section "Spatial-Frequency Token Selection".

    Examples:
        >>> scores = torch.tensor([[[[0.1, 0.7, 0.2], [0.3, 0.3, 0.4]]]])  # of two heads
        >>> select_tokens(scores, num=1)
        tensor([[False,  True,  True]])
    """
    check_positive(num=num)
    if num > scores.shape[-1]:
        raise ValueError(f"num must be at most the number of patches, {scores.shape[-1]}; received {num}")
    if present is not None:
        scores = torch.where(present[..., None, None], scores, 0.0)
    kept = top_tokens(scores.flatten(0, 2), num).unflatten(0, scores.shape[:3])
    return (kept if present is None else kept & present[..., None, None]).flatten(1, 2).any(dim=1)
