r"""Class tokens that read the selected patches of all modalities: the second half of SIM.

Equations 15-18 of Signal, the paper "Signal: Selective Interaction and Global-Local Alignment for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2511.17965>. The selection is in `selection.py`.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._checks import check_choice, check_heads
from stmi_layers._precision import layer_norm
from stmi_layers._typing import typed
from stmi_layers.cross_attention import read_heads, zero_where_none

Unselected = Literal["hidden", "zeroed"]


class SelectiveInteraction(nn.Module):
    r"""Lets the class token of every modality read the gated patches of all modalities (eq. 15-18).

    $$Z = N_1\big(c + \operatorname{CrossAttn}(c, g \odot F, g \odot F)\big) \qquad
    \bar F = N_2\big(Z + \operatorname{FFN}(Z)\big)$$

    $c$ are the `class_tokens`, $F$ the `patches`, $g$ the `gates` (such as those of
    [`TokenSelection`][stmi_layers.selection.TokenSelection]), $N$ layer norms, and CrossAttn is
    [`absorbed_cross_attention`][stmi_layers.cross_attention.absorbed_cross_attention]. Flattened, the result is the
    descriptor of the paper, first modality first. The layer learns the attention, which has the parameter names of
    `nn.MultiheadAttention`, the feed-forward network and both norms.

    Differences from the paper and the research code:

    - A patch whose gate is 0 leaves the softmax. In the research code it stays as a zero vector and takes a share of
      the attention: 12 % of it when 12 % of the patches are unselected. `unselected="zeroed"` gives this reading.
    - Patches of absent modalities leave the softmax in both readings. The result of an absent modality is 0.

    Args:
        dim: width of the tokens.
        num_heads: heads of the attention; divides `dim`.
        mlp_ratio: hidden width of the feed-forward network, in units of `dim`.
        unselected: treatment of a patch whose gate is 0: `"hidden"` from the attention, or `"zeroed"`, which reads the
            patch as a zero vector.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, the feed-forward network has no width, or `unselected` is
            unknown. `forward` also raises ValueError for inputs of the wrong size.

    Reference: Signal, AAAI 2026, section on the Selective Interaction Module.

    Examples:
        >>> interaction = SelectiveInteraction(dim=8, num_heads=2)
        >>> gates = torch.tensor([1.0, 1.0, 0.0, 0.0]).expand(2, 3, 4)
        >>> interaction(torch.randn(2, 3, 8), torch.randn(2, 3, 4, 8), gates).shape
        torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        num_heads: int = 8,
        mlp_ratio: float = 2.0,
        unselected: Unselected = "hidden",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_choice("unselected", unselected, get_args(Unselected))
        hidden = int(mlp_ratio * dim)
        if hidden < 1:
            raise ValueError(f"mlp_ratio * dim must be at least 1; received mlp_ratio={mlp_ratio}, dim={dim}")
        self.dim, self.num_heads, self.mlp_ratio = dim, num_heads, mlp_ratio
        self.unselected: Unselected = unselected
        factory = {"device": device, "dtype": dtype}
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim, **factory))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim, **factory))
        self.out_proj = nn.Linear(dim, dim, **factory)
        self.norm_attention = nn.LayerNorm(dim, **factory)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden, **factory), nn.GELU(), nn.Linear(hidden, dim, **factory))
        self.norm_ffn = nn.LayerNorm(dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of the modules of torch."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        for layer in self.modules():
            if isinstance(layer, nn.LayerNorm | nn.Linear):
                layer.reset_parameters()
        nn.init.zeros_(self.out_proj.bias)

    @typed
    def forward(
        self,
        class_tokens: Float[Tensor, "batch modalities dim"],
        patches: Float[Tensor, "batch modalities patches dim"],
        gates: Float[Tensor, "batch modalities patches"] | None = None,
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch modalities dim"]:
        """Return the updated `class_tokens`, which read the `patches`.

        `gates` are 1 for the patches that take part and 0 for all other patches; None lets all patches take part.
        `present` is True for the modalities that a sample has; None for all.
        """
        if class_tokens.shape[-1] != self.dim:
            received = tuple(class_tokens.shape)
            raise ValueError(f"class_tokens must have width dim={self.dim}; received shape {received}")
        keep = None if present is None else present[..., None].expand(patches.shape[:3])
        if present is not None and keep is not None:
            # Before any product, because 0 * NaN is NaN, in gradients too.
            class_tokens = torch.where(present[..., None], class_tokens, 0.0)
            patches = torch.where(keep[..., None], patches, 0.0)
            gates = None if gates is None else torch.where(keep, gates, 0.0)
        learned = None  # gates for their gradient alone: they change no value, because patches of gate 0 are hidden
        if gates is not None and self.unselected == "hidden":
            learned, keep = gates.flatten(1) if gates.requires_grad else None, gates != 0
        elif gates is not None:
            patches = patches * gates[..., None].to(patches.dtype)
        keep = None if keep is None else keep.flatten(1)
        context, attention = patches.flatten(1, 2), (self.in_proj_weight, self.in_proj_bias, self.num_heads)
        read = zero_where_none(self.out_proj(read_heads(class_tokens, context, *attention, keep, learned)), keep)
        tokens = layer_norm(self.norm_attention, class_tokens + read)
        tokens = layer_norm(self.norm_ffn, tokens + self.ffn(tokens)).to(class_tokens.dtype)
        return tokens if present is None else torch.where(present[..., None], tokens, 0.0)

    def extra_repr(self) -> str:
        options = f"mlp_ratio={self.mlp_ratio}, unselected={self.unselected!r}"
        return f"dim={self.dim}, num_heads={self.num_heads}, {options}"
