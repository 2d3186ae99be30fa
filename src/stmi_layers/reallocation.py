r"""From many patch tokens to a few semantic tokens, none dropped: Semantic Token Reallocation (STR).

Learned queries and a text prior read all patches by cross-attention (eq. 9-13).
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal
Object Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed
from stmi_layers.kernels.reading import ReadTokens


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
    r"""Multi-head attention of a few queries to many tokens, without projecting the tokens.

    $$\operatorname{concat}_h\Big( \big(A_h\,\text{context}\big)\, W_{v,h}^\top + b_{v,h} \Big)\,
    \text{out\_weight}^\top + \text{out\_bias}, \qquad
    A_h = \operatorname{softmax}\big( (q_h W_{k,h})\, \text{context}^\top \big)$$

    $q_h = (\text{query}\, W_{q,h}^\top + b_{q,h})\, /\, \sqrt{\text{dim} / \text{num\_heads}}$; $W_q, W_k, W_v$ and
    $b_q, b_k, b_v$ are the thirds of `in_proj_weight` and `in_proj_bias`. This is `nn.MultiheadAttention` in another
    order: $W_k$ goes to the queries, $W_v$ behind the weighted sum, and $b_k$, which adds the same to all logits of a
    query, cancels. That pays while the queries are fewer than half the width of a head; from there on the tokens are
    projected, in the usual order, with the same result. Logits and softmax are computed in at least float32.

    Args:
        query: what the tokens are read with.
        context: what is read: keys and values.
        in_proj_weight: projections to query, key and value, stacked as in `nn.MultiheadAttention`.
        in_proj_bias: their biases, or None.
        out_weight: projection of the concatenated heads.
        out_bias: its bias, or None.
        num_heads: number of heads; divides `dim`.
        keep: True for the tokens that take part; None for all. The others must be finite.

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
    _check_heads(query.shape[-1], num_heads)
    if context.shape[1] == 0:
        raise ValueError(f"context must hold at least one token; received shape {tuple(context.shape)}")
    weights, biases = in_proj_weight.chunk(3), (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    if 2 * query.shape[1] < query.shape[2] // num_heads:
        rows = _absorbed_rows(query, weights[0], biases[0], weights[1], num_heads)
        value_weight = rearrange(weights[2], "(heads head_dim) dim -> heads head_dim dim", heads=num_heads)
        read = _read(rows, context, keep).unflatten(1, (num_heads, -1))
        values = torch.einsum("bhqc, hdc -> bqhd", read, value_weight).flatten(2)
        values = values if biases[2] is None else values + biases[2]
    else:
        values = _read_projected(query, context, weights, biases, num_heads, keep)
    output = F.linear(values, out_weight, out_bias)
    return output if keep is None else torch.where(keep.any(dim=1)[:, None, None], output, 0.0)


def _absorbed_rows(query: Tensor, query_weight: Tensor, bias: Tensor | None, key_weight: Tensor, heads: int) -> Tensor:
    """What the tokens are multiplied with: scaled queries times key weights, (batch heads*queries dim)."""
    query = rearrange(F.linear(query, query_weight, bias), "b queries (heads d) -> b queries heads d", heads=heads)
    key_weight = rearrange(key_weight, "(heads head_dim) dim -> heads head_dim dim", heads=heads)
    with without_autocast(query):
        query = at_least_float32(query) * query.shape[-1] ** -0.5
        return torch.einsum("bqhd, hdc -> bhqc", query, at_least_float32(key_weight)).flatten(1, 2)


def _read(rows: Tensor, context: Tensor, keep: Tensor | None) -> Tensor:
    """Weighted means of the tokens, (batch rows dim)."""
    wide = context.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(context.device.type)
    # A compiler wants plain operations; where the tokens need no gradient, autograd is as good.
    if wide and context.requires_grad and not torch.compiler.is_compiling():
        return ReadTokens.apply(rows, context, keep)[0]
    keep = None if keep is None else keep[:, None, :]
    return _attention_weights(rows, context, keep).to(context.dtype) @ context


def _read_projected(
    query: Tensor,
    context: Tensor,
    weights: tuple[Tensor, ...],
    biases: tuple[Tensor | None, ...],
    heads: int,
    keep: Tensor | None,
) -> Tensor:
    """The same in the usual order, with keys and values of all tokens: cheaper for many queries."""
    parts = (F.linear(*operands) for operands in zip((query, context, context), weights, biases, strict=True))
    query, key, value = (rearrange(part, "b tokens (heads d) -> b heads tokens d", heads=heads) for part in parts)
    keep = None if keep is None else keep[:, None, None, :]
    attention = _attention_weights(at_least_float32(query) * query.shape[-1] ** -0.5, key, keep)
    return rearrange(attention.to(value.dtype) @ value, "b heads tokens d -> b tokens (heads d)")


def _attention_weights(rows: Tensor, keys: Tensor, keep: Tensor | None = None) -> Tensor:
    """Softmax of `rows` times `keys`, in at least float32; even where nothing is kept."""
    with without_autocast(rows):
        logits = rows @ at_least_float32(keys).transpose(-2, -1)
        if keep is not None:
            # Not -inf: a row of nothing but -inf is NaN, and so is its gradient.
            logits = logits.masked_fill(~keep, torch.finfo(logits.dtype).min)
        return logits.softmax(dim=-1)


class SemanticTokenReallocation(nn.Module):
    r"""Reads the patches of one modality into $K$ semantic tokens, or $K + 1$ with a text prior (eq. 9-13).

    $$Z = \operatorname{CrossAttn}\big(N(Q'), N(F), N(F)\big) + Q' \qquad
    \tilde F = \operatorname{FFN}\big(N(Z)\big) + Z$$

    $F$ are the `patches`, $Q'$ the learned queries followed by the `prior`, $N$ layer norms, and CrossAttn is
    [`absorbed_cross_attention`][stmi_layers.reallocation.absorbed_cross_attention]. The order of the patches does not
    matter; their positions must be in them already. Learned are queries, norms, attention and feed-forward network.
    The attention has the parameter names of `nn.MultiheadAttention`; the key part of `in_proj_bias` has no effect.

    The queries belong to one modality (eq. 10): a model holds one layer per modality. Start them as copies of one
    (`copy.deepcopy`) when their tokens shall be compared, as in a hypergraph: layers drawn apart put even equal images
    into unrelated directions. For queries shared by several modalities, call one layer on each.

    Differences from the paper:

    - Queries, patches and $Z$ are normalised first (pre-norm), as in the research code; the paper writes no norm.
    - The prior is optional, so that images without captions work.

    Args:
        dim: width of the tokens.
        num_tokens: $K$, the number of learned queries.
        num_heads: heads of the attention; divides `dim`.
        mlp_ratio: hidden width of the feed-forward network, in units of `dim`.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, or `num_tokens` or `mlp_ratio` leaves nothing.

    Reference: STMI, AAAI 2026, section "Semantic Token Reallocation".

    Examples:
        >>> reallocation = SemanticTokenReallocation(dim=8, num_tokens=4, num_heads=2)
        >>> patches, prior = torch.randn(2, 128, 8), torch.randn(2, 8)
        >>> reallocation(patches).shape, reallocation(patches, prior).shape
        (torch.Size([2, 4, 8]), torch.Size([2, 5, 8]))
    """

    def __init__(
        self,
        dim: int,
        num_tokens: int = 4,
        *,
        num_heads: int = 8,
        mlp_ratio: float = 4.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_heads(dim, num_heads)
        if num_tokens < 1:
            raise ValueError(f"num_tokens must be at least 1; received {num_tokens}")
        hidden = int(mlp_ratio * dim)
        if hidden < 1:
            raise ValueError(f"mlp_ratio * dim must be at least 1; received mlp_ratio={mlp_ratio}, dim={dim}")
        self.dim, self.num_tokens, self.num_heads, self.mlp_ratio = dim, num_tokens, num_heads, mlp_ratio
        factory = {"device": device, "dtype": dtype}
        self.queries = nn.Parameter(torch.empty(num_tokens, dim, **factory))
        self.norm_queries = nn.LayerNorm(dim, **factory)
        self.norm_patches = nn.LayerNorm(dim, **factory)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim, **factory))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim, **factory))
        self.out_proj = nn.Linear(dim, dim, **factory)
        self.norm_ffn = nn.LayerNorm(dim, **factory)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden, **factory), nn.GELU(), nn.Linear(hidden, dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of the modules of torch, and standard normal queries."""
        # Small queries drown in the residual: all K tokens become one mean of the patches, and CHI joins everything.
        nn.init.normal_(self.queries)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        for layer in self.modules():
            if isinstance(layer, nn.LayerNorm | nn.Linear):
                layer.reset_parameters()
        nn.init.zeros_(self.out_proj.bias)

    @typed
    def forward(
        self, patches: Float[Tensor, "batch patches dim"], prior: Float[Tensor, "batch dim"] | None = None
    ) -> Float[Tensor, "batch semantic dim"]:
        """Read `patches` with the learned queries and, when given, the text `prior`, whose token comes last."""
        queries = self._queries(patches, prior)
        attention = (self.in_proj_weight, self.in_proj_bias, self.out_proj.weight, self.out_proj.bias, self.num_heads)
        read = absorbed_cross_attention(self.norm_queries(queries), self.norm_patches(patches), *attention)
        tokens = read + queries
        return (self.ffn(self.norm_ffn(tokens)) + tokens).to(patches.dtype)

    @typed
    def attention(
        self, patches: Float[Tensor, "batch patches dim"], prior: Float[Tensor, "batch dim"] | None = None
    ) -> Float[Tensor, "batch heads semantic patches"]:
        """How much of each patch `forward` reads into each semantic token; sums to 1 over the patches."""
        queries, patches = self.norm_queries(self._queries(patches, prior)), self.norm_patches(patches)
        query_weight, key_weight, _ = self.in_proj_weight.chunk(3)
        rows = _absorbed_rows(queries, query_weight, self.in_proj_bias.chunk(3)[0], key_weight, self.num_heads)
        return _attention_weights(rows, patches).unflatten(1, (self.num_heads, -1))

    def _queries(self, patches: Tensor, prior: Tensor | None) -> Tensor:
        if patches.shape[-1] != self.dim:
            raise ValueError(f"patches must have width dim={self.dim}; received shape {tuple(patches.shape)}")
        queries = self.queries.expand(patches.shape[0], -1, -1)
        return queries if prior is None else torch.cat([queries, prior[:, None].to(queries.dtype)], dim=1)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_tokens={self.num_tokens}, num_heads={self.num_heads}, mlp_ratio={self.mlp_ratio}"


def _check_heads(dim: int, num_heads: int) -> None:
    if num_heads < 1 or dim < 1 or dim % num_heads:
        raise ValueError(f"num_heads must divide dim; received dim={dim}, num_heads={num_heads}")
