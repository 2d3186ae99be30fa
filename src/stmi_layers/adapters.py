r"""Modules for frozen transformers: parallel adapters, residual prompts, and adapters into another space.

Parallel adapters (PFA) and synergistic residual prompts (SRP) come from "MambaPro: Multi-Modal Object
Re-Identification with Mamba Aggregation and Synergistic Prompt", <https://arxiv.org/abs/2412.10707>. The formulas
follow its code, <https://github.com/924973292/MambaPro>. `stmi_layers.backbones.adapt` puts both into the vision
transformers of open_clip, timm and transformers.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stmi_layers._checks import check_choice, check_positive
from stmi_layers._diagonal import on_diagonal
from stmi_layers._precision import layer_norm
from stmi_layers._typing import typed

Activation = Literal["quick_gelu", "gelu"]


class ParallelAdapter(nn.Module):
    r"""Small network parallel to the feed-forward network of a block, which adds its result to the tokens (PFA).

    $$W_b\, \sigma(W_a\, \text{tokens} + b_a) + b_b$$

    The adapter reads the tokens before the norm of the feed-forward network.

    Differences from the research code: $W_b$ starts at 0, so that the pretrained block is unchanged at first.
    `zero_init=False` draws $W_b$ like $W_a$, from a truncated normal distribution of standard deviation 0.02.

    Args:
        dim: width of the tokens.
        hidden: width between the two maps; twice `dim` by default, as in the research code.
        activation: $\sigma$: "quick_gelu", $x \operatorname{sigmoid}(1.702\, x)$, or "gelu".
        zero_init: whether $W_b$ starts at 0.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when a size is below 1 or `activation` is unknown. `forward` also raises ValueError for inputs of
            the wrong size.

    Examples:
        >>> adapter, tokens = ParallelAdapter(dim=8), torch.randn(2, 5, 8)
        >>> adapter(tokens).any()
        tensor(False)
    """

    def __init__(
        self,
        dim: int,
        *,
        hidden: int | None = None,
        activation: Activation = "quick_gelu",
        zero_init: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, hidden=hidden)
        check_choice("activation", activation, get_args(Activation))
        self.dim, self.hidden, self.zero_init = dim, hidden or 2 * dim, zero_init
        self.activation: Activation = activation
        factory = {"device": device, "dtype": dtype}
        self.expand = nn.Linear(dim, self.hidden, **factory)
        self.project = nn.Linear(self.hidden, dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: small weights, zero biases and, with `zero_init`, zero weights in `project`."""
        for layer in (self.expand, self.project):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if self.zero_init:
            nn.init.zeros_(self.project.weight)

    @typed
    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Return the change that the block adds to its tokens."""
        if tokens.shape[-1] != self.dim:
            raise ValueError(f"tokens must have width dim={self.dim}; received shape {tuple(tokens.shape)}")
        hidden = self.expand(tokens)
        hidden = hidden * (1.702 * hidden).sigmoid() if self.activation == "quick_gelu" else F.gelu(hidden)
        return self.project(hidden).to(tokens.dtype)

    def extra_repr(self) -> str:
        options = f"activation={self.activation!r}, zero_init={self.zero_init}"
        return f"dim={self.dim}, hidden={self.hidden}, {options}"


class AsymmetricAdapter(nn.Module):
    r"""Carries features of a frozen tower into the space of another model.

    $$W_2 \operatorname{GELU}\big(W_1 \operatorname{LN}(x) + b_1\big) + b_2 \;(+\, x)$$

    Queries and targets play different roles: build one adapter for each. The residual $+\, x$ exists only where
    `in_dim` equals `dim`. FusionSegReID / PS-ReID (<https://arxiv.org/abs/2503.21595>) calls its adapters "linear or
    MLP" and publishes no formula; this layer is our reading.

    Args:
        in_dim: width of the features.
        dim: width of the result.
        hidden: width between the two maps; `dim` by default.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when a size is below 1. `forward` also raises ValueError for inputs of the wrong size.

    Examples:
        >>> of_queries, of_targets = AsymmetricAdapter(8, 12), AsymmetricAdapter(8, 12)
        >>> of_queries(torch.randn(2, 5, 8)).shape
        torch.Size([2, 5, 12])
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        hidden: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(in_dim=in_dim, dim=dim, hidden=hidden)
        self.in_dim, self.dim, self.hidden = in_dim, dim, hidden or dim
        factory = {"device": device, "dtype": dtype}
        self.norm = nn.LayerNorm(in_dim, **factory)
        self.expand = nn.Linear(in_dim, self.hidden, **factory)
        self.project = nn.Linear(self.hidden, dim, **factory)

    def reset_parameters(self) -> None:
        """Set the initial values: those of the modules of torch."""
        for layer in (self.norm, self.expand, self.project):
            layer.reset_parameters()

    @typed
    def forward(self, features: Float[Tensor, "batch tokens in_dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Map `features`, token by token."""
        if features.shape[-1] != self.in_dim:
            raise ValueError(f"features must have width in_dim={self.in_dim}; received shape {tuple(features.shape)}")
        output = self.project(F.gelu(self.expand(layer_norm(self.norm, features)))).to(features.dtype)
        return output + features if self.in_dim == self.dim else output

    def extra_repr(self) -> str:
        return f"{self.in_dim}, {self.dim}, hidden={self.hidden}"


class ResidualPrompts(nn.Module):
    r"""Prompts of every modality for one block: learned prompts plus results of the previous block (SRP).

    $$\text{own slot of } m:\ p_m + c + T(c) \qquad \text{slot of another modality } k:\ p_k + A_k(p_k)$$

    $c$ is the output of the previous block for the prompts of this image, averaged over its slots; the first block has
    no $c$. $T$ and $A_k$ have the form of a [`ParallelAdapter`][stmi_layers.adapters.ParallelAdapter]. Modalities meet
    through shared parameters alone: an image of one modality sees the prompts of all modalities, but no other image.
    An absent modality needs no treatment: ignore its part of the result.

    Differences from the research code:

    - Prompts start at random values. In the research code all prompts start at 0, get equal gradients and stay equal,
      so that several prompts act as one; `std=0.0` gives this start.
    - The first block, with `carries=False`, has no unused $T$.

    Args:
        dim: width of the tokens.
        num_modalities: number of modalities.
        num_prompts: number of prompts per modality.
        hidden: width inside $T$ and $A_k$; half of `dim` by default.
        carries: whether `forward` gets the prompts of a previous block; False for the first block.
        std: standard deviation of the initial prompts, at least 0.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when a size is below 1, or `std` is negative. `forward` also raises ValueError for inputs of the
            wrong size.

    Examples:
        >>> prompts = ResidualPrompts(dim=8, num_modalities=3)
        >>> prompts(torch.randn(2, 3, 4, 8)).shape  # three slots of four prompts, for each image
        torch.Size([2, 3, 12, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_prompts: int = 4,
        hidden: int | None = None,
        carries: bool = True,
        std: float = 0.02,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, num_modalities=num_modalities, num_prompts=num_prompts, hidden=hidden)
        if not std >= 0:
            raise ValueError(f"std must be at least 0; received {std}")
        self.dim, self.num_modalities, self.num_prompts = dim, num_modalities, num_prompts
        self.hidden, self.carries, self.std = hidden or max(dim // 2, 1), carries, std
        factory = {"device": device, "dtype": dtype}
        options = {"hidden": self.hidden, "zero_init": False, **factory}
        self.prompts = nn.Parameter(torch.empty(num_modalities, num_prompts, dim, **factory))
        self.foreign = nn.ModuleList(ParallelAdapter(dim, **options) for _ in range(num_modalities))
        self.carry = ParallelAdapter(dim, **options) if carries else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: small prompts and weights, zero biases."""
        nn.init.normal_(self.prompts, std=self.std)
        for layer in self.modules():
            if isinstance(layer, ParallelAdapter):
                layer.reset_parameters()

    @typed
    def forward(
        self, carried: Float[Tensor, "batch modalities prompts dim"] | None = None
    ) -> Float[Tensor, "batch modalities slots dim"]:
        """Return the prompts of all slots for each image; without `carried`, a batch of one for the first block."""
        own, others = self.prompts[None], []
        if carried is not None:
            own = self._carry(carried) + carried + own
        for prompts, network in zip(self.prompts[:, None].unbind(0), self.foreign, strict=True):
            others.append(prompts + network(prompts))
        same = on_diagonal(self.num_modalities, own.device)[..., None, None]
        return torch.where(same, own[:, :, None], torch.cat(others)).flatten(2, 3)

    def _carry(self, carried: Tensor) -> Tensor:
        expected = (self.num_modalities, self.num_prompts, self.dim)
        if self.carry is None:
            rule = "carried must be None with carries=False"
            raise ValueError(f"{rule}; received shape {tuple(carried.shape)}. Build the layer with carries=True")
        if carried.shape[1:] != expected:
            rule = f"carried must have num_modalities, num_prompts and dim={expected}"
            raise ValueError(f"{rule}; received shape {tuple(carried.shape)}")
        return self.carry(carried.flatten(0, 1)).unflatten(0, (-1, self.num_modalities))

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_modalities={self.num_modalities}, num_prompts={self.num_prompts}"
        return f"{sizes}, hidden={self.hidden}, carries={self.carries}, std={self.std}"
