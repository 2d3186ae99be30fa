r"""Global tokens that read the semantic tokens of all modalities: the readout of STMI.

Their cross-attention gives the final descriptor $U$ (eq. 17-18).
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal
Object Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._checks import check_heads, check_probability
from stmi_layers._precision import layer_norm
from stmi_layers._typing import typed
from stmi_layers.cross_attention import read_heads, zero_where_none


class GlobalCrossAttention(nn.Module):
    r"""Lets the global token of every modality read the tokens of all modalities (eq. 18).

    $$U = \operatorname{CrossAttn}\big(N(G), N(H'), N(H')\big) + G$$

    $G$ are the `globals`, one per modality (eq. 17), $H'$ the `tokens`, $N$ layer norms, and CrossAttn is
    [`absorbed_cross_attention`][stmi_layers.cross_attention.absorbed_cross_attention]. The order of the tokens does not
    matter. The layer learns the norms and the attention, which has the parameter names of `nn.MultiheadAttention`; the
    key part of `in_proj_bias` has no effect.

    Differences from the paper:

    - Both inputs are normalised first, as in STR, because class tokens and semantic tokens have different scales. Eq.
      18 writes no norm (`norm=False`). The residual is $G$ itself.
    - `keep` leaves out tokens, such as the tokens of a missing modality. A sample that keeps no token returns its
      `globals`. The result of a missing modality has no meaning; do not use it.

    Differences from the research code (in evaluation, `num_heads=1, norm=False` gives its descriptor):

    - The research code has one head and no norm. Eight heads let a global token read several groups of tokens at once.
    - In training the research code drops attention weights and features of the result, each with probability 0.1. Here
      `dropout` applies to the result alone, because weights no longer sum to 1 after dropout.
    - The research code flattens $U$ with the width first and the modality last. Retrieval is the same with the modality
      first, but a classifier trained on one order cannot read the other order.

    Args:
        dim: width of the tokens.
        num_heads: heads of the attention; divides `dim`.
        norm: whether a layer norm comes before the attention on globals and tokens.
        dropout: probability, in training, that a feature of the attention's result is zeroed before the residual.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, or `dropout` is not a probability. `forward` also raises
            ValueError for inputs of the wrong size.

    Reference: STMI, AAAI 2026, section "Cross-Modal Hypergraph Interaction".

    Examples:
        >>> readout = GlobalCrossAttention(dim=8, num_heads=2)
        >>> readout(torch.randn(2, 3, 8), torch.randn(2, 15, 8)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        norm: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_probability("dropout", dropout)
        self.dim, self.num_heads, self.norm = dim, num_heads, norm
        factory = {"device": device, "dtype": dtype}
        self.norm_globals = nn.LayerNorm(dim, **factory) if norm else None
        self.norm_tokens = nn.LayerNorm(dim, **factory) if norm else None
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim, **factory))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim, **factory))
        self.out_proj = nn.Linear(dim, dim, **factory)
        self.dropout = nn.Dropout(dropout)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of `nn.MultiheadAttention`."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        for layer in (self.norm_globals, self.norm_tokens, self.out_proj):
            if layer is not None:
                layer.reset_parameters()
        nn.init.zeros_(self.out_proj.bias)

    @typed
    def forward(
        self,
        globals: Float[Tensor, "batch modalities dim"],
        tokens: Float[Tensor, "batch nodes dim"],
        keep: Bool[Tensor, "batch nodes"] | None = None,
    ) -> Float[Tensor, "batch modalities dim"]:
        """Return `globals` plus their attention to the `tokens` that `keep` marks True; None keeps all tokens."""
        if globals.shape[-1] != self.dim:
            raise ValueError(f"globals must have width dim={self.dim}; received shape {tuple(globals.shape)}")
        if keep is not None:
            # Before the norm, because 0 * NaN is NaN: gradients stay finite, whatever the value of a token left out.
            tokens = torch.where(keep[..., None], tokens, 0.0)
        query = globals if self.norm_globals is None else layer_norm(self.norm_globals, globals)
        context = tokens if self.norm_tokens is None else layer_norm(self.norm_tokens, tokens)
        heads = read_heads(query, context, self.in_proj_weight, self.in_proj_bias, self.num_heads, keep)
        read = zero_where_none(self.out_proj(heads), keep)
        return (self.dropout(read) + globals).to(globals.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, norm={self.norm}, dropout={self.dropout.p}"
