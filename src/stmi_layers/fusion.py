r"""Global tokens that read the semantic tokens of all modalities: the readout of STMI.

The cross-attention from which the final descriptor $U$ comes (eq. 17-18).
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
    r"""Lets the global token of every modality read the tokens of all of them (eq. 18).

    $$U = \operatorname{CrossAttn}\big(N(G), N(H'), N(H')\big) + G$$

    $G$ are the `globals`, one per modality (eq. 17), $H'$ the `tokens`, $N$ layer norms, and CrossAttn is
    [`absorbed_cross_attention`][stmi_layers.cross_attention.absorbed_cross_attention]. The order of the tokens does not
    matter. Learns the norms and the attention, which has the parameter names of `nn.MultiheadAttention`; the key
    part of `in_proj_bias` has no effect.

    Differences from the paper:

    - Both inputs are normalised first, as in STR: class tokens and semantic tokens come at different scales. Eq. 18
      writes no norm (`norm=False`). The residual is $G$ itself.
    - `keep` leaves out tokens, such as those of a missing modality. A sample that keeps none returns its `globals`. The
      result of a missing modality has no meaning: leave it out of what follows.

    Differences from the research code, whose descriptor `num_heads=1, norm=False` gives in evaluation:

    - It has one head and no norm. Eight heads let a global token read several groups of tokens at once.
    - In training it drops attention weights as well as features of the read, each with probability 0.1; here `dropout`
      concerns the read alone, because weights that are dropped no longer sum to 1.
    - It flattens $U$ with the width first and the modality last. Retrieval is the same with the modality first; a
      classifier trained on one order cannot read the other.

    Args:
        dim: width of the tokens.
        num_heads: heads of the attention; divides `dim`.
        norm: normalise globals and tokens before the attention.
        dropout: probability, in training, that a feature of what was read is zeroed before the residual.
        device: device of the parameters.
        dtype: dtype of the parameters.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, or `dropout` is not a probability.

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
        """Add to each of the `globals` what it reads from the `tokens` that `keep` marks True; None keeps all."""
        if globals.shape[-1] != self.dim:
            raise ValueError(f"globals must have width dim={self.dim}; received shape {tuple(globals.shape)}")
        if keep is not None:
            # Before the norm, because 0 * NaN is NaN: whatever stands in a token left out, gradients stay finite.
            tokens = torch.where(keep[..., None], tokens, 0.0)
        query = globals if self.norm_globals is None else layer_norm(self.norm_globals, globals)
        context = tokens if self.norm_tokens is None else layer_norm(self.norm_tokens, tokens)
        heads = read_heads(query, context, self.in_proj_weight, self.in_proj_bias, self.num_heads, keep)
        read = zero_where_none(self.out_proj(heads), keep)
        return (self.dropout(read) + globals).to(globals.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, norm={self.norm}, dropout={self.dropout.p}"
