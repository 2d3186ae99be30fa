r"""Selection of the patches that take part: the choice of the class tokens, within and across modalities (SIM).

Equations 5-15 of Signal, the paper "Signal: Selective Interaction and Global-Local Alignment for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2511.17965>. What reads the selected patches is in
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
    and in every runtime that an exported graph runs in.

    Args:
        scores: any numbers. A token whose score is -inf or NaN is never marked.
        num: how many tokens to mark, at least 0; all of them from the number of tokens on.

    Returns:
        True for the marked tokens. Every row has `num` of them, or fewer if it has fewer scores above -inf.

    Raises:
        ValueError: when `num` is negative.

    Examples:
        >>> top_tokens(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 2)
        tensor([[False,  True,  True, False]])
        >>> top_tokens(torch.tensor([[1.0, 3.0, 3.0, 2.0]]), 1)
        tensor([[False,  True, False, False]])
    """
    if not torch.compiler.is_compiling() and num < 0:  # a graph may not know the sign of a number that follows a size
        raise ValueError(f"num must be at least 0; received {num}")
    return _highest(scores, num)


def _highest(scores: Tensor, limit: int | Tensor) -> Tensor:
    """Mark the `limit` highest scores of every row; a tensor of limits has one per row, in an axis of size 1."""
    if scores.shape[-1] == 0:
        return scores.bool()
    scores = at_least_float32(scores.detach())
    scores = scores.masked_fill(scores.isnan(), -math.inf)
    if not isinstance(limit, Tensor):
        limit = torch.full_like(scores[..., :1], limit, dtype=torch.int64)
    # Only the values of the sort are read, because runtimes differ in the order of equal ones.
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
    r"""Mark what the modalities want from each other (eq. 8-13).

    The modality $m$ ranks the patches of all other modalities together, and wants the $(n - 1) \cdot \text{num}$
    highest; $n$ is the number of modalities that the sample has. How these are split between the modalities is free.

    Args:
        scores: of the patches in the last two axes, given by the modality in the second axis.
        num: how many patches a modality wants from another one, on average.
        present: True for the modalities that the sample has; None for all.

    Returns:
        True for the patches that at least one other modality wants; never in a modality that is absent.

    Examples:
        >>> scores = torch.tensor([[[[9.0, 9.0], [2.0, 1.0]], [[3.0, 4.0], [9.0, 9.0]]]])
        >>> select_across(scores, 1)  # the first modality wants the first patch of the second one
        tensor([[[False,  True],
                 [ True, False]]])
    """
    return _across(scores, num, present)


def _across(scores: Tensor, num: int, present: Tensor | None) -> Tensor:
    """`select_across` without its checks, which take as long as a product of matrices."""
    batch, modalities, _, patches = scores.shape
    if present is None:
        present = scores.new_ones(batch, modalities, dtype=torch.bool)
    other = ~on_diagonal(modalities, scores.device)
    seen = present[:, :, None] & present[:, None, :] & other
    ranked = scores.masked_fill(~seen[..., None], -math.inf).flatten(2)
    limit = num * (present.sum(dim=1) - 1)
    return _highest(ranked, limit[:, None, None]).unflatten(2, (modalities, patches)).any(dim=1)


def keep_count(keep: float, tokens: int) -> int:
    """Return how many of `tokens` to keep: `keep` itself as an int, or that share of them as a float, rounded up.

    In whole numbers above 0, so that an exported graph follows the number of tokens: runtimes round others towards 0.
    """
    if isinstance(keep, int):
        return keep
    share = Fraction(keep).limit_denominator(1000)
    return (tokens * share.numerator + share.denominator - 1) // share.denominator


class TokenSelection(nn.Module):
    r"""Gates for the patches of all modalities: 1 for those that the class tokens select, 0 for the others (eq. 5-14).

    $$g = I \lor C \qquad I_m = \operatorname{top}_k (F_m c_m) \qquad
    C = \operatorname{across}_k (S) \qquad S_{mn} = (W_q c_m + b_q)^\top W_k F_n / \sqrt{\text{dim}}$$

    $F$ are the `patches` and $c$ the `class_tokens`. The class token of a modality selects $k$ of its own patches
    ([`top_tokens`][stmi_layers.selection.top_tokens]) and, by a learned score, patches of the other modalities
    ([`select_across`][stmi_layers.selection.select_across]). Hand the gates to
    [`SelectiveInteraction`][stmi_layers.interaction.SelectiveInteraction], or multiply the patches with them. Learned
    are `query`, $W_q$ and $b_q$, and `key`, $W_k$.

    The values of the gates are exactly 0 and 1. Their gradient is that of the share of attention which the patch gets
    from the class tokens of the other modalities, $p_{ni} = \sum_{m \ne n} \operatorname{softmax}(S_m)_{ni}$: a
    straight-through estimate, by which $W_q$ and $W_k$ learn what helps the loss behind the gates. Patches and class
    tokens get no gradient from the gates: a tower learns features, not to have them selected.

    Differences from the paper and the research code:

    - There, the selection has no gradient and $W_q$, $W_k$ stay at their random start. `straight_through=False` gives
      that reading.
    - $b_k$, which adds the same to all scores of a class token, and the unused $W_v$ are left out.
    - Scores are ranked before the softmax, in which the lower ones tie at 0.
    - Any number of modalities, and samples with missing ones: see
      [`select_across`][stmi_layers.selection.select_across]. A modality alone keeps its own selection.

    Args:
        dim: width of the tokens.
        keep: $k$, the patches that a class token selects per modality: an int for their number (80, 112 and 64 of 128
            in the paper's experiments), a float in (0, 1] for their share, rounded up. The union keeps more than $k$.
        straight_through: give the gates a gradient.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: when `dim` is below 1, or `keep` is neither a number from 1 on nor a share.

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
        """Return the gates, in the dtype of `patches`; 0 for the patches of modalities that are absent."""
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
        """Score own patches (batch modalities patches), and all patches (batch modalities modalities patches)."""
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
