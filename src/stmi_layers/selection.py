r"""Selection of patches by class tokens, within and across modalities: the first half of SIM.

Equations 5-15 of Signal, the paper "Signal: Selective Interaction and Global-Local Alignment for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2511.17965>. The layer that reads the selected patches is in
`interaction.py`.
"""

import math
from fractions import Fraction

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._diagonal import on_diagonal
from stmi_layers._precision import at_least_float32, call_wide, is_plain, without_autocast
from stmi_layers._typing import typed


@typed
def top_tokens(scores: Float[Tensor, "batch tokens"], num: int) -> Bool[Tensor, "batch tokens"]:
    """Mark the `num` tokens of each row that have the highest scores.

    The scores are compared in at least float32. Of equal scores the first wins, as in a stable sort, on every device
    and in every runtime of an exported graph.

    Args:
        scores: any numbers. A token whose score is -inf or NaN is never marked.
        num: number of tokens to mark, at least 0; a number above the number of tokens marks all tokens.

    Returns:
        True for the marked tokens, `num` in every row, or fewer in a row with fewer scores above -inf.

    Raises:
        ValueError: when `num` is negative.

    Examples:
        >>> top_tokens(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 2)
        tensor([[False,  True,  True, False]])
        >>> top_tokens(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 1)
        tensor([[False,  True, False, False]])
    """
    if not torch.compiler.is_compiling() and num < 0:  # a graph may not know the sign of a symbolic number
        raise ValueError(f"num must be at least 0; received {num}")
    return _highest(scores, num)


def _highest(scores: Tensor, limit: int | Tensor) -> Tensor:
    """Mark the `limit` highest scores of every row; a tensor holds one limit per row, in a last axis of size 1."""
    if scores.shape[-1] == 0:
        return scores.bool()
    scores = at_least_float32(scores.detach())
    scores = scores.masked_fill(scores.isnan(), -math.inf)
    if not isinstance(limit, Tensor):
        limit = torch.full_like(scores[..., :1], limit, dtype=torch.int64)
    # Only the values of the sort are read, because runtimes differ in the order of equal values.
    last = (limit - 1).clamp(0, scores.shape[-1] - 1).expand(*scores.shape[:-1], 1)
    threshold = scores.sort(dim=-1, descending=True).values.gather(scores.ndim - 1, last)
    above, equal = scores > threshold, scores == threshold
    first = equal.to(torch.int64).cumsum(dim=-1) <= limit - above.sum(dim=-1, keepdim=True)
    return (above | equal & first) & (limit > 0) & (scores > -math.inf)


@typed
def select_across(
    scores: Float[Tensor, "batch modalities modalities patches"],
    num: int,
    *,
    present: Bool[Tensor, "batch modalities"] | None = None,
) -> Bool[Tensor, "batch modalities patches"]:
    r"""Mark the patches that the modalities select from each other (eq. 8-13).

    Each modality ranks the patches of all other modalities together and selects the $(n - 1) \cdot \text{num}$ highest;
    $n$ is the number of modalities that the sample has. The selected patches may come from any other modality.

    Args:
        scores: scores that the modality in the second axis gives to the patches of the modality in the third axis.
        num: number of patches that a modality selects per other modality, on average; at least 0.
        present: True for the modalities that a sample has; None for all.

    Returns:
        True for the patches that at least one other modality selects; False for all patches of an absent modality.

    Examples:
        >>> scores = torch.tensor([[[[9.0, 9.0], [2.0, 1.0]], [[3.0, 4.0], [9.0, 9.0]]]])
        >>> select_across(scores, 1)  # the first modality wants the first patch of the second one
        tensor([[[False,  True],
                 [ True, False]]])
    """
    return _across(scores, num, present)


def _across(scores: Tensor, num: int, present: Tensor | None) -> Tensor:
    """Compute `select_across` without its checks, which take as long as a matrix product."""
    batch, modalities, _, patches = scores.shape
    if present is None:
        present = scores.new_ones(batch, modalities, dtype=torch.bool)
    other = ~on_diagonal(modalities, scores.device)
    seen = present[:, :, None] & present[:, None, :] & other
    ranked = scores.masked_fill(~seen[..., None], -math.inf).flatten(2)
    limit = num * (present.sum(dim=1) - 1)
    return _highest(ranked, limit[:, None, None]).unflatten(2, (modalities, patches)).any(dim=1)


def keep_count(keep: float, tokens: int) -> int:
    """Return how many of `tokens` to keep: an int `keep` itself, or a float `keep` times `tokens`, rounded up.

    The code uses positive whole numbers, so that an exported graph follows the number of tokens: runtimes round
    negative quotients towards 0.
    """
    if isinstance(keep, int):
        return keep
    share = Fraction(keep).limit_denominator(1000)
    return (tokens * share.numerator + share.denominator - 1) // share.denominator


class TokenSelection(nn.Module):
    r"""Gates for the patches of all modalities: 1 for patches that class tokens select, otherwise 0 (eq. 5-14).

    $$g = I \lor C \qquad I_m = \operatorname{top}_k (F_m c_m) \qquad
    C = \operatorname{across}_k (S) \qquad S_{mn} = (W_q c_m + b_q)^\top W_k F_n / \sqrt{\text{dim}}$$

    $F$ are the `patches` and $c$ the `class_tokens`. The class token of a modality selects $k$ of its own patches
    ([`top_tokens`][stmi_layers.selection.top_tokens]) and, by a learned score, patches of the other modalities
    ([`select_across`][stmi_layers.selection.select_across]). Pass the gates to
    [`SelectiveInteraction`][stmi_layers.interaction.SelectiveInteraction], or multiply the patches by the gates. The
    layer learns `query` ($W_q$ and $b_q$) and `key` ($W_k$).

    The values of the gates are exactly 0 and 1. Their gradient is that of the share of attention which the patch gets
    from the class tokens of the other modalities, $p_{ni} = \sum_{m \ne n} \operatorname{softmax}(S_m)_{ni}$. This is a
    straight-through estimate: by it $W_q$ and $W_k$ learn which selection lowers the loss. Patches and class tokens get
    no gradient from the gates, so that the selection does not train the backbone.

    Differences from the paper and the research code:

    - In the research code the selection has no gradient, and $W_q$, $W_k$ keep their random initial values.
      `straight_through=False` gives this reading.
    - $b_k$, which adds the same to all scores of a class token, and the unused $W_v$ are left out.
    - Scores are ranked before the softmax, in which low scores tie at 0.
    - The layer takes any number of modalities, and samples with missing modalities: see
      [`select_across`][stmi_layers.selection.select_across]. A single modality keeps its own selection.

    Args:
        dim: width of the tokens.
        keep: $k$, the patches that a class token selects per modality: an int of at least 1 for their number (80, 112
            and 64 of 128 in the paper's experiments), or a float in (0, 1] for their share, rounded up. The union of
            all selections may hold more than $k$ patches of a modality.
        straight_through: whether the gates have a gradient.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `dim` is below 1, or `keep` is neither an int of at least 1 nor a float in (0, 1]. `forward`
            also raises ValueError for inputs of the wrong size.

    Reference: Signal, AAAI 2026, section on the Selective Interaction Module.

    Examples:
        >>> selection = TokenSelection(dim=8, keep=0.25)
        >>> gates = selection(torch.randn(2, 3, 16, 8), torch.randn(2, 3, 8))
        >>> gates.shape, gates.unique()
        (torch.Size([2, 3, 16]), tensor([0., 1.], grad_fn=<Unique2Backward0>))
    """

    def __init__(
        self,
        dim: int,
        keep: float,
        *,
        straight_through: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim must be at least 1; received {dim}")
        if not (keep >= 1 if isinstance(keep, int) else 0 < keep <= 1):
            raise ValueError(f"keep must be a whole number of at least 1 or a share in (0, 1]; received {keep}")
        self.dim, self.keep, self.straight_through = dim, keep, straight_through
        self.query = nn.Linear(dim, dim, device=device, dtype=dtype)
        self.key = nn.Linear(dim, dim, bias=False, device=device, dtype=dtype)

    def reset_parameters(self) -> None:
        """Set the initial values: those of `nn.Linear`."""
        self.query.reset_parameters()
        self.key.reset_parameters()

    @typed
    def forward(
        self,
        patches: Float[Tensor, "batch modalities patches dim"],
        class_tokens: Float[Tensor, "batch modalities dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch modalities patches"]:
        """Return the gates, in the dtype of `patches`; 0 for the patches of absent modalities."""
        if patches.shape[-1] != self.dim:
            raise ValueError(f"patches must have width dim={self.dim}; received shape {tuple(patches.shape)}")
        if present is not None:
            # Before any product, because 0 * NaN is NaN, in gradients too.
            patches = torch.where(present[..., None, None], patches, 0.0)
            class_tokens = torch.where(present[..., None], class_tokens, 0.0)
        own, across = self._scores(patches.detach(), class_tokens.detach())
        num = keep_count(self.keep, patches.shape[2])
        if present is not None:
            own = own.masked_fill(~present[..., None], -math.inf)
        gates = (_highest(own, num) | _across(across, num, present)).to(across.dtype)
        if self.straight_through:
            wanted = _share_of_attention(across, present)
            gates = gates + (wanted - wanted.detach())
        return gates.to(patches.dtype)

    def _scores(self, patches: Tensor, class_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Return scores of own patches (batch modalities patches) and of all (batch modalities modalities patches)."""
        with without_autocast(patches):
            wide = at_least_float32(patches)
            class_tokens = class_tokens.to(wide.dtype)
            own = (class_tokens[:, :, None] @ wide.transpose(2, 3)).squeeze(2)
            rows, keys = call_wide(self.query, class_tokens) * self.dim**-0.5, wide.flatten(1, 2)
            if is_plain(self.key):
                # Projects the few class tokens instead of the many patches.
                rows = rows @ self.key.weight.to(wide.dtype)
            else:
                keys = call_wide(self.key, keys)
            across = rows @ keys.transpose(1, 2)
        return own, across.unflatten(2, patches.shape[1:3])

    def extra_repr(self) -> str:
        return f"dim={self.dim}, keep={self.keep}, straight_through={self.straight_through}"


def _share_of_attention(scores: Tensor, present: Tensor | None) -> Tensor:
    """Sum the attention that each patch gets from the other modalities, (batch modalities patches)."""
    if present is not None:
        scores = scores.masked_fill(~present[:, None, :, None], torch.finfo(scores.dtype).min)
    shares = scores.flatten(2).softmax(dim=-1).view_as(scores)
    other = ~on_diagonal(scores.shape[1], scores.device)[..., None]
    if present is not None:
        other = other & (present[:, :, None] & present[:, None, :])[..., None]
    return torch.where(other, shares, 0.0).sum(dim=1)
