r"""Semantic Token Reallocation (STR): a few semantic tokens that read all patches, without dropping any patch.

Learned queries and a text prior read all patches by cross-attention (eq. 9-13).
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal
Object Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from stmi_layers._checks import check_heads, check_positive
from stmi_layers._precision import layer_norm
from stmi_layers._typing import typed
from stmi_layers.cross_attention import absorbed_rows, attention_weights, read_heads


class SemanticTokenReallocation(nn.Module):
    r"""Reads the patches of one modality into $K$ semantic tokens, or $K + 1$ with a text prior (eq. 9-13).

    $$Z = \operatorname{CrossAttn}\big(N(Q'), N(F), N(F)\big) + Q' \qquad
    \tilde F = \operatorname{FFN}\big(N(Z)\big) + Z$$

    $F$ are the `patches`, $Q'$ the learned queries followed by the `prior`, $N$ layer norms, and CrossAttn is
    [`absorbed_cross_attention`][stmi_layers.cross_attention.absorbed_cross_attention]. The order of the patches does
    not matter; the patches must already contain their positions. The layer learns queries, norms, attention and
    feed-forward network. The attention has the parameter names of `nn.MultiheadAttention`; the key part of
    `in_proj_bias` has no effect.

    The queries belong to one modality (eq. 10), so that a model holds one layer per modality. If their tokens will be
    compared, as in a hypergraph, start all layers as copies of one layer (`copy.deepcopy`): independent random layers
    map even equal images to unrelated directions. To share queries between modalities, call one layer on each modality.

    Differences from the paper:

    - Queries, patches and $Z$ are normalised first (pre-norm), as in the research code; the paper writes no norm.
    - The prior is optional, so that images without captions work.

    Differences from the research code: the research code has one layer norm for queries and patches, with an epsilon of
    1e-6. Here queries and patches have separate norms, with torch's epsilon of 1e-5, because their scales differ. To
    reproduce the research code, copy its norm to both norms and set their `eps`.

    Args:
        dim: width of the tokens.
        num_tokens: $K$, the number of learned queries.
        num_heads: heads of the attention; divides `dim`.
        mlp_ratio: hidden width of the feed-forward network, in units of `dim`.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, or `num_tokens` or the hidden width is below 1. `forward`
            also raises ValueError for inputs of the wrong size.

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
        check_heads(dim, num_heads)
        check_positive(num_tokens=num_tokens)
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
        # Small queries vanish beside the attention: all K tokens become the mean of the patches, and CHI joins them.
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
        """Return the semantic tokens of `patches`; with a text `prior`, its token comes last."""
        queries = self._queries(patches, prior)
        attention = (self.in_proj_weight, self.in_proj_bias, self.num_heads)
        read = read_heads(layer_norm(self.norm_queries, queries), layer_norm(self.norm_patches, patches), *attention)
        tokens = self.out_proj(read) + queries
        return (self.ffn(layer_norm(self.norm_ffn, tokens)) + tokens).to(patches.dtype)

    @typed
    def attention(
        self, patches: Float[Tensor, "batch patches dim"], prior: Float[Tensor, "batch dim"] | None = None
    ) -> Float[Tensor, "batch heads semantic patches"]:
        """Return the weight of each patch in each semantic token of `forward`; weights sum to 1 over the patches."""
        queries, keys = (
            layer_norm(self.norm_queries, self._queries(patches, prior)),
            layer_norm(self.norm_patches, patches),
        )
        query_weight, key_weight, _ = self.in_proj_weight.chunk(3)
        rows = absorbed_rows(queries, query_weight, self.in_proj_bias.chunk(3)[0], key_weight, self.num_heads)
        return attention_weights(rows, keys).unflatten(1, (self.num_heads, -1))

    def _queries(self, patches: Tensor, prior: Tensor | None) -> Tensor:
        if patches.shape[-1] != self.dim:
            raise ValueError(f"patches must have width dim={self.dim}; received shape {tuple(patches.shape)}")
        queries = self.queries.expand(patches.shape[0], -1, -1)
        return queries if prior is None else torch.cat([queries, prior[:, None].to(queries.dtype)], dim=1)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_tokens={self.num_tokens}, num_heads={self.num_heads}, mlp_ratio={self.mlp_ratio}"
