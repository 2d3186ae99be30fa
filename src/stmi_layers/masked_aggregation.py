r"""Hierarchical masked aggregation (HMA): transformer blocks over kept tokens, first per modality, then jointly.

Paper: "Magic Tokens: Select Diverse Tokens for Multi-modal Object Re-Identification" (EDITOR), CVPR 2024,
<https://arxiv.org/abs/2403.10254>.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._block import Block, self_attention
from stmi_layers._checks import check_heads, check_hidden, check_positive
from stmi_layers._precision import layer_norm
from stmi_layers._typing import typed


@typed
def masked_self_attention(
    tokens: Float[Tensor, "batch tokens dim"],
    keep: Bool[Tensor, "batch tokens"],
    in_proj_weight: Float[Tensor, "3*dim dim"],
    out_weight: Float[Tensor, "dim dim"],
    num_heads: int,
) -> Float[Tensor, "batch tokens dim"]:
    r"""Attend among the kept tokens with several heads.

    $$\operatorname{concat}_h\Big( \sum_j a_{ijh}\, v_{jh} \Big)\, \text{out\_weight}^\top
    \qquad {\text{for } i \in \text{keep}, \text{ and } 0 \text{ otherwise}}, \qquad
    a_{ijh} = \operatorname{softmax}_{j \in \text{keep}}\big( {q_{ih} \cdot k_{jh}} \big/
    \sqrt{\text{dim} / \text{num\_heads}} \big)$$

    $q, k, v$ are the thirds of the tokens times `in_proj_weight`. The softmax runs in at least float32.

    Args:
        tokens: queries, keys and values. Tokens that are not kept may hold any value, also NaN.
        keep: True for the tokens that take part.
        in_proj_weight: projections to query, key and value, stacked as in `nn.MultiheadAttention`.
        out_weight: projection of the concatenated heads.
        num_heads: number of heads; divides `dim`.

    Returns:
        The result of attention among the kept tokens alone, at their positions; zero at all other positions.

    Raises:
        ValueError: when `num_heads` does not divide `dim`.

    Examples:
        >>> tokens = torch.tensor([[[2.0], [4.0], [90.0]]])
        >>> weight = torch.tensor([[0.0], [0.0], [1.0]])  # zero queries attend evenly to the kept tokens
        >>> masked_self_attention(tokens, torch.tensor([[True, True, False]]), weight, torch.eye(1), 1)
        tensor([[[3.],
                 [3.],
                 [0.]]])
    """
    check_heads(tokens.shape[-1], num_heads)
    tokens = torch.where(keep[..., None], tokens, 0.0)
    return self_attention(tokens, in_proj_weight, partial(F.linear, weight=out_weight), num_heads, keep)


class MaskedAggregation(nn.Module):
    r"""One transformer block per modality over its kept tokens, then one block over all kept tokens (HMA).

    $$F_m \leftarrow B_m(F_m), \qquad [F_1 ; \ldots ; F_M] \leftarrow N\big(B([F_1 ; \ldots ; F_M])\big)$$

    $F$ are the `tokens`, $B$ pre-norm blocks without biases in their linear maps, $N$ a layer norm. No token attends to
    a token that is not kept, whose own result is zero: the blocks work as if the other tokens did not exist. `within`
    and `across` are the two steps; `forward` runs both.

    The layer saves the computation of tokens that are not kept. On a CPU, in eager mode, it packs every sample to the
    largest number of kept tokens. On other devices the count would make the host wait, and graphs cannot count: there
    the layer computes all tokens unless `max_kept` bounds their number.

    Differences from the paper and the research code:

    - The layer takes any number of modalities, each with its own `keep`; the paper keeps the same patches of all.
    - The layer computes kept tokens alone. The research code computes all tokens and multiplies by the mask.
    - A sample may keep no token; its result is zero.

    Args:
        dim: width of the tokens.
        num_modalities: number of modalities.
        num_heads: heads of the attention; divides `dim`.
        mlp_ratio: hidden width of the feed-forward networks, in units of `dim`.
        max_kept: largest number of tokens that a sample keeps of one modality. A sample that keeps more becomes NaN.
            None for an unknown number.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, or a size is below 1. `forward` also raises ValueError for
            inputs of the wrong size.

    Reference: Zhang et al., "Magic Tokens", CVPR 2024, section "Hierarchical Masked Aggregation".

    Examples:
        >>> aggregation = MaskedAggregation(dim=8, num_modalities=3, num_heads=2)
        >>> tokens, keep = torch.randn(2, 3, 129, 8), torch.rand(2, 3, 129) < 0.3
        >>> result = aggregation(tokens, keep)
        >>> result.shape, bool(result[~keep].any())
        (torch.Size([2, 3, 129, 8]), False)
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        max_kept: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(num_modalities=num_modalities, max_kept=max_kept)
        hidden = check_hidden(dim, mlp_ratio)
        self.dim, self.num_modalities, self.num_heads = dim, num_modalities, num_heads
        self.mlp_ratio, self.max_kept = mlp_ratio, max_kept
        factory = {"device": device, "dtype": dtype}
        self.blocks = nn.ModuleList(Block(dim, num_heads, hidden, bias=False, **factory) for _ in range(num_modalities))
        self.joint = Block(dim, num_heads, hidden, bias=False, **factory)
        self.norm = nn.LayerNorm(dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: truncated normal weights of standard deviation 0.02, and norms of scale 1."""
        for layer in self.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()
            elif isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
            elif isinstance(layer, Block):
                nn.init.trunc_normal_(layer.in_proj_weight, std=0.02)

    @typed
    def forward(
        self,
        tokens: Float[Tensor, "batch modalities tokens dim"],
        keep: Bool[Tensor, "batch modalities tokens"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch modalities tokens dim"]:
        """Return the tokens after both steps; zero for tokens that are not kept, or whose modality is absent."""
        return self._across(self._within(tokens, keep, present), keep, present)

    @typed
    def within(
        self,
        tokens: Float[Tensor, "batch modalities tokens dim"],
        keep: Bool[Tensor, "batch modalities tokens"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch modalities tokens dim"]:
        """Return the tokens after the block of their own modality; arguments as in `forward`."""
        return self._within(tokens, keep, present)

    @typed
    def across(
        self,
        tokens: Float[Tensor, "batch modalities tokens dim"],
        keep: Bool[Tensor, "batch modalities tokens"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch modalities tokens dim"]:
        """Return the tokens after the joint block and the last norm; arguments as in `forward`."""
        return self._across(tokens, keep, present)

    def _within(self, tokens: Tensor, keep: Tensor, present: Tensor | None) -> Tensor:
        self._check(tokens)
        keep = keep if present is None else keep & present[..., None]
        parts = zip(self.blocks, tokens.unbind(1), keep.unbind(1), strict=True)
        done = [_on_kept(block, part, kept, self.max_kept) for block, part, kept in parts]
        return torch.stack(done, dim=1)

    def _across(self, tokens: Tensor, keep: Tensor, present: Tensor | None) -> Tensor:
        self._check(tokens)
        keep = keep if present is None else keep & present[..., None]
        bound = None if self.max_kept is None else self.max_kept * self.num_modalities
        done = _on_kept(self._joint_block, tokens.flatten(1, 2), keep.flatten(1), bound)
        return done.unflatten(1, keep.shape[1:])

    def _joint_block(self, tokens: Tensor, keep: Tensor) -> Tensor:
        return layer_norm(self.norm, self.joint(tokens, keep))

    def _check(self, tokens: Tensor) -> None:
        if (tokens.shape[1], tokens.shape[-1]) != (self.num_modalities, self.dim):
            rule = f"tokens must have width dim={self.dim} and num_modalities={self.num_modalities}"
            raise ValueError(f"{rule}; received shape {tuple(tokens.shape)}")

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_modalities={self.num_modalities}, num_heads={self.num_heads}"
        return f"{sizes}, mlp_ratio={self.mlp_ratio}, max_kept={self.max_kept}"


def _on_kept(
    function: Callable[[Tensor, Tensor], Tensor], tokens: Tensor, keep: Tensor, max_kept: int | None
) -> Tensor:
    """Apply `function` to the kept tokens (batch tokens dim), packed where their largest number is known."""
    tokens = torch.where(keep[..., None], tokens, 0.0)  # before any arithmetic, because 0 * NaN is NaN
    width = _width(keep, max_kept)
    if width >= keep.shape[1]:
        return torch.where(keep[..., None], function(tokens, keep), 0.0).to(tokens.dtype)
    # Kept tokens come first, in order, then as many other tokens as fit; no two keys are equal.
    keys = torch.arange(keep.shape[1], device=keep.device) + torch.where(keep, 0, keep.shape[1])
    order = keys.topk(width, dim=1, largest=False).indices
    rows = (order + torch.arange(keep.shape[0], device=keep.device)[:, None] * keep.shape[1]).flatten()
    packed = tokens.flatten(0, 1).index_select(0, rows).unflatten(0, order.shape)
    kept = keep.gather(1, order)
    done = torch.where(kept[..., None], function(packed, kept), 0.0).to(tokens.dtype)
    result = torch.zeros_like(tokens).flatten(0, 1).index_copy(0, rows, done.flatten(0, 1)).unflatten(0, keep.shape)
    if max_kept is None:
        return result
    too_many = keep.sum(dim=1, keepdim=True) > width
    return torch.where((too_many & keep)[..., None], torch.nan, result)


def _width(keep: Tensor, max_kept: int | None) -> int:
    """Return the number of tokens to compute per sample."""
    if max_kept is not None:
        return max_kept
    return max(int(keep.sum(dim=1).max()), 1) if _may_count(keep) else keep.shape[1]


def _may_count(keep: Tensor) -> bool:
    """Tell whether the host can read the mask without waiting for a device or breaking a graph."""
    return keep.device.type == "cpu" and not torch.compiler.is_compiling() and keep.numel() > 0
