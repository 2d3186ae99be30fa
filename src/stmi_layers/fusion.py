r"""Global tokens that read the semantic tokens of all modalities: the readout of STMI.

The cross-attention from which the final descriptor $U$ comes (eq. 17-18).
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal
Object Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._typing import typed
from stmi_layers.reallocation import absorbed_cross_attention


class GlobalCrossAttention(nn.Module):
    r"""Lets the global token of every modality read the tokens of all of them (eq. 18).

    $$U = \operatorname{CrossAttn}\big(N(G), N(H'), N(H')\big) + G$$

    $G$ are the `globals`, one per modality (eq. 17), $H'$ the `tokens`, $N$ layer norms, and CrossAttn is
    [`absorbed_cross_attention`][stmi_layers.reallocation.absorbed_cross_attention]. The order of the tokens does not
    matter. Learned are the norms and the attention, which has the parameter names of `nn.MultiheadAttention`; the key
    part of `in_proj_bias` has no effect.

    Differences from the paper:

    - Both inputs are normalised first, as in STR: class tokens and semantic tokens come at different scales. Eq. 18
      writes no norm. The residual is $G$ itself.
    - `keep` leaves out tokens, such as those of a missing modality. A sample that keeps none returns its `globals`. The
      result of a missing modality has no meaning: leave it out of what follows.

    Args:
        dim: width of the tokens.
        num_heads: heads of the attention; divides `dim`.
        dropout: probability, in training, that a feature of what was read is zeroed before the residual.
        device: of the parameters.
        dtype: of the parameters.

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
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim < 1 or dim % num_heads:
            raise ValueError(f"num_heads must divide dim; received dim={dim}, num_heads={num_heads}")
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be a probability in [0, 1]; received {dropout}")
        self.dim, self.num_heads = dim, num_heads
        factory = {"device": device, "dtype": dtype}
        self.norm_globals = nn.LayerNorm(dim, **factory)
        self.norm_tokens = nn.LayerNorm(dim, **factory)
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
            # Before the norm, for 0 * NaN is NaN: whatever stands in a token left out, gradients stay finite.
            tokens = torch.where(keep[..., None], tokens, 0.0)
        attention = (self.in_proj_weight, self.in_proj_bias, self.out_proj.weight, self.out_proj.bias, self.num_heads)
        read = absorbed_cross_attention(self.norm_globals(globals), self.norm_tokens(tokens), *attention, keep=keep)
        return (self.dropout(read) + globals).to(globals.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, dropout={self.dropout.p}"
