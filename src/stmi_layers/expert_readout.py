r"""Class tokens that read the results of all experts: multi-grained aggregation (MGFA).

One cross-attention, with a query per modality, reads the tokens of every expert. The published text fixes this
structure and leaves norms and residual open; the layer documents its reading.
Paper: NEXT, arXiv 2505.20001, <https://arxiv.org/abs/2505.20001>.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._checks import check_heads
from stmi_layers._precision import layer_norm
from stmi_layers._typing import typed
from stmi_layers.cross_attention import read_heads, zero_where_none


class ExpertReadout(nn.Module):
    r"""Lets the global token of every modality read the tokens of all experts.

    $$U = G + \operatorname{CrossAttn}\big( G,\, Y,\, Y \big), \qquad Y = [\, y_1 ; \dots ; y_E \,]$$

    $G$ are the `globals`, one per modality, $y_e$ the `tokens` of expert $e$, and CrossAttn is
    [`absorbed_cross_attention`][stmi_layers.cross_attention.absorbed_cross_attention]: the few queries read thousands
    of tokens without projecting them. The order of the experts does not matter. The layer learns the attention, which
    has the parameter names of `nn.MultiheadAttention`; the key part of `in_proj_bias` has no effect. A model holds one
    readout per kind of experts and supervises each result; document which result is the descriptor.

    The paper leaves three points open. In this layer the residual is the global token itself, no feed-forward network
    follows, and norms on both inputs are an option, off by default.

    Our addition: tokens of absent modalities are not read, whatever their values, and the results of absent modalities
    are 0.

    Args:
        dim: width of the tokens.
        num_heads: heads of the attention; divides `dim`.
        norm: whether a layer norm comes before the attention on both inputs, as in `GlobalCrossAttention`.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `num_heads` does not divide `dim`. `forward` also raises ValueError for inputs of the wrong
            size.

    Examples:
        >>> readout = ExpertReadout(dim=8, num_heads=2)
        >>> readout(torch.randn(2, 3, 8), torch.randn(2, 4, 30, 8)).shape
        torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        norm: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.dim, self.num_heads = dim, num_heads
        factory = {"device": device, "dtype": dtype}
        self.norm_globals = nn.LayerNorm(dim, **factory) if norm else None
        self.norm_tokens = nn.LayerNorm(dim, **factory) if norm else None
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim, **factory))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim, **factory))
        self.out_proj = nn.Linear(dim, dim, **factory)
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
        tokens: Float[Tensor, "batch experts tokens dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch modalities dim"]:
        """Return `globals` plus the attention to `tokens`, which hold the first modality first; 0 where absent."""
        modalities, (experts, count) = globals.shape[1], tokens.shape[1:3]
        if globals.shape[2] != self.dim:
            raise ValueError(f"globals must have width dim={self.dim}; received shape {tuple(globals.shape)}")
        keep = None
        if present is not None:
            if count % modalities:
                raise ValueError(f"tokens must hold equally many of each of {modalities} modalities; received {count}")
            keep = present.repeat_interleave(count // modalities, dim=1).repeat(1, experts)
            globals = torch.where(present[..., None], globals, 0.0)
        context = tokens.flatten(1, 2)
        if keep is not None:
            # Before the norm and the attention, because 0 * NaN is NaN.
            context = torch.where(keep[..., None], context, 0.0)
        query = globals if self.norm_globals is None else layer_norm(self.norm_globals, globals)
        context = context if self.norm_tokens is None else layer_norm(self.norm_tokens, context)
        heads = read_heads(query, context, self.in_proj_weight, self.in_proj_bias, self.num_heads, keep)
        output = zero_where_none(self.out_proj(heads), keep) + globals
        return (output if present is None else torch.where(present[..., None], output, 0.0)).to(globals.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}, norm={self.norm_globals is not None}"
