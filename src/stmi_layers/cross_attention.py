r"""Cross-attention of a few queries to many tokens, without projecting the tokens.

Semantic token reallocation (STMI, eq. 11) and the readout (eq. 18) use this attention.
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal
Object Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from stmi_layers._checks import check_heads
from stmi_layers._precision import at_least_float32, autocast_enabled, without_autocast
from stmi_layers._typing import capturing, typed
from stmi_layers.kernels.read_tokens import ReadTokens


@typed
def absorbed_cross_attention(
    query: Float[Tensor, "batch queries dim"],
    context: Float[Tensor, "batch tokens dim"],
    in_proj_weight: Float[Tensor, "3*dim dim"],
    in_proj_bias: Float[Tensor, " 3*dim"] | None,
    out_weight: Float[Tensor, "dim dim"],
    out_bias: Float[Tensor, " dim"] | None,
    num_heads: int,
    *,
    keep: Bool[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, "batch queries dim"]:
    r"""Attend from a few queries to many tokens with several heads, without projecting the tokens.

    $$\operatorname{concat}_h\Big( \big(A_h\,\text{context}\big)\, W_{v,h}^\top + b_{v,h} \Big)\,
    \text{out\_weight}^\top + \text{out\_bias}, \qquad
    A_h = \operatorname{softmax}\big( (q_h W_{k,h})\, \text{context}^\top \big)$$

    $q_h = (\text{query}\, W_{q,h}^\top + b_{q,h})\, /\, \sqrt{\text{dim} / \text{num\_heads}}$; $W_q, W_k, W_v$ and
    $b_q, b_k, b_v$ are the thirds of `in_proj_weight` and `in_proj_bias`. This is `nn.MultiheadAttention` in another
    order: $W_k$ multiplies the queries, $W_v$ multiplies the weighted sum, and $b_k$ cancels, because it adds the same
    to all logits of a query. This order is cheaper while the queries are fewer than half the width of a head. For more
    queries the tokens are projected in the usual order, with the same result. Logits and softmax are computed in at
    least float32.

    Args:
        query: queries, which read the tokens.
        context: tokens that serve as keys and as values; at least one.
        in_proj_weight: projections to query, key and value, stacked as in `nn.MultiheadAttention`.
        in_proj_bias: biases of these projections, or None.
        out_weight: projection of the concatenated heads.
        out_bias: bias of that projection, or None.
        num_heads: number of heads; divides `dim`.
        keep: True for the tokens that take part; None for all. Tokens left out must be finite.

    Returns:
        One convex combination of tokens per query and head, projected; zero where a sample keeps no token.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, or `context` has no tokens at all.

    Examples:
        >>> query, context = torch.zeros(1, 1, 2), torch.tensor([[[1.0, 0.0], [3.0, 4.0]]])
        >>> identity = torch.eye(2)  # zero queries attend evenly: the mean of the tokens
        >>> absorbed_cross_attention(query, context, identity.repeat(3, 1), None, identity, None, num_heads=1)
        tensor([[[2., 2.]]])
    """
    check_heads(query.shape[-1], num_heads)
    read = read_heads(query, context, in_proj_weight, in_proj_bias, num_heads, keep)
    return zero_where_none(F.linear(read, out_weight, out_bias), keep)


def read_heads(
    query: Tensor,
    context: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor | None,
    num_heads: int,
    keep: Tensor | None = None,
    gates: Tensor | None = None,
) -> Tensor:
    """Return the concatenated heads, (batch queries dim), which `absorbed_cross_attention` projects at the end.

    A layer calls its `out_proj` on the heads, as a module, so that hooks, adapters and quantised modules take effect.
    `gates` (batch tokens) are 1 for the tokens that `keep` marks and get the gradient of factors of the tokens.
    """
    if context.shape[1] == 0:
        raise ValueError(f"context must hold at least one token; received shape {tuple(context.shape)}")
    weights, biases = in_proj_weight.chunk(3), (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    if 2 * query.shape[1] >= query.shape[2] // num_heads:
        return _read_projected(query, _gated(context, gates), weights, biases, num_heads, keep)
    rows = absorbed_rows(query, weights[0], biases[0], weights[1], num_heads)
    value_weight = rearrange(weights[2], "(heads head_dim) dim -> heads head_dim dim", heads=num_heads)
    read = _read(rows, context, keep, gates).unflatten(1, (num_heads, -1))
    values = torch.einsum("bhqc, hdc -> bqhd", read, value_weight).flatten(2)
    return values if biases[2] is None else values + biases[2]


def read_by_keys(query: Tensor, keys: Tensor, values: Tensor, num_heads: int) -> Tensor:
    """Let one query per set, (batch sets dim), read the keys and values of its set, (batch sets tokens dim)."""
    parts = (query[:, :, None], keys, values)
    query, keys, values = (rearrange(part, "b sets n (heads d) -> b sets heads n d", heads=num_heads) for part in parts)
    with without_autocast(query):
        logits = at_least_float32(query) * query.shape[-1] ** -0.5 @ at_least_float32(keys).transpose(-2, -1)
        weights = logits.softmax(dim=-1)
    return rearrange(weights.to(values.dtype) @ values, "b sets heads 1 d -> b sets (heads d)")


def zero_where_none(output: Tensor, keep: Tensor | None) -> Tensor:
    """Return `output`, with zeros for the samples that keep no token."""
    return output if keep is None else torch.where(keep.any(dim=1)[:, None, None], output, 0.0)


def absorbed_rows(query: Tensor, query_weight: Tensor, bias: Tensor | None, key_weight: Tensor, heads: int) -> Tensor:
    """Return scaled queries times key weights, (batch heads*queries dim): their products with tokens are logits."""
    query = rearrange(F.linear(query, query_weight, bias), "b queries (heads d) -> b queries heads d", heads=heads)
    key_weight = rearrange(key_weight, "(heads head_dim) dim -> heads head_dim dim", heads=heads)
    with without_autocast(query):
        query = at_least_float32(query) * query.shape[-1] ** -0.5
        return torch.einsum("bqhd, hdc -> bhqc", query, at_least_float32(key_weight)).flatten(1, 2)


def attention_weights(rows: Tensor, keys: Tensor, keep: Tensor | None = None) -> Tensor:
    """Return the softmax of `rows` times `keys`, in at least float32; equal weights where nothing is kept."""
    with without_autocast(rows):
        logits = rows @ at_least_float32(keys).transpose(-2, -1)
        if keep is not None:
            # Not -inf: a row of nothing but -inf is NaN, and so is its gradient.
            logits = logits.masked_fill(~keep, torch.finfo(logits.dtype).min)
        return logits.softmax(dim=-1)


def _read(rows: Tensor, context: Tensor, keep: Tensor | None, gates: Tensor | None) -> Tensor:
    """Return weighted means of the tokens, (batch rows dim)."""
    wide = context.dtype in (torch.float32, torch.float64) and not autocast_enabled(context)
    # A captured graph must hold plain operations; for tokens without a gradient, autograd is as good.
    if wide and context.requires_grad and not capturing():
        return ReadTokens.apply(rows, context, keep, gates)[0]
    context = _gated(context, gates)
    weights = attention_weights(rows, context, None if keep is None else keep[:, None, :])
    return weights.to(context.dtype) @ context


def _gated(context: Tensor, gates: Tensor | None) -> Tensor:
    """Return the tokens times their gates. This changes the gradient alone, because tokens of gate 0 are never read."""
    return context if gates is None else context * gates[..., None].to(context.dtype)


def _read_projected(
    query: Tensor,
    context: Tensor,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    heads: int,
    keep: Tensor | None,
) -> Tensor:
    """Return the concatenated heads by keys and values of all tokens, the usual order: cheaper for many queries."""
    parts = (F.linear(*operands) for operands in zip((query, context, context), weights, biases, strict=True))
    query, key, value = (rearrange(part, "b tokens (heads d) -> b heads tokens d", heads=heads) for part in parts)
    keep = None if keep is None else keep[:, None, None, :]
    attention = attention_weights(at_least_float32(query) * query.shape[-1] ** -0.5, key, keep)
    return rearrange(attention.to(value.dtype) @ value, "b heads tokens d -> b tokens (heads d)")
