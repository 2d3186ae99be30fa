r"""Modules for frozen transformers: parallel adapters, residual prompts, and adapters into another space.

Parallel adapters (PFA) and synergistic residual prompts (SRP) are those of "MambaPro: Multi-Modal Object
Re-Identification with Mamba Aggregation and Synergistic Prompt", <https://arxiv.org/abs/2412.10707>; the formulas are
those of its code, <https://github.com/924973292/MambaPro>. `stmi_layers.backbones.adapt` puts both into the vision
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
    r"""A small network beside the feed-forward network of a block, whose results are added (PFA).

    $$W_b\, \sigma(W_a\, \text{tokens} + b_a) + b_b$$

    It reads the tokens before the norm of the feed-forward network.

    Differences from the research code: $W_b$ starts at 0, so that the pretrained block starts as it was
    (`zero_init=False` for normal numbers of standard deviation 0.02, as for $W_a$).

    Args:
        dim: width of the tokens.
        hidden: width between the two maps; twice `dim` by default, as in the research code.
        activation: $\sigma$: "quick_gelu", $x \operatorname{sigmoid}(1.702\, x)$, or "gelu".
        zero_init: start $W_b$ at 0.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: when a size is below 1 or `activation` is unknown.

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
        """Set the initial values: small weights, or zeros behind the activation, and no biases."""
        for layer in (self.expand, self.project):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if self.zero_init:
            nn.init.zeros_(self.project.weight)

    @typed
    def forward(self, tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Compute what is to be added to `tokens`."""
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

    Queries and targets play different roles: build one for each, with weights of its own. The residual exists where
    `in_dim` is `dim`. For systems such as FusionSegReID / PS-ReID (<https://arxiv.org/abs/2503.21595>), whose adapters
    are "linear or MLP" without a public formula: this one is our reading.

    Args:
        in_dim: width of the features.
        dim: width of the result.
        hidden: width between the two maps; `dim` by default.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: when a size is below 1.

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
    r"""Prompts of every modality for one block: learned, and carried on from the block before (SRP).

    $$\text{own slot of } m:\ p_m + c + T(c) \qquad \text{slot of another modality } k:\ p_k + A_k(p_k)$$

    $c$ is what the last block made of the prompts in this image, the mean over its slots; the first block has none. $T$
    and $A_k$ are networks like a [`ParallelAdapter`][stmi_layers.adapters.ParallelAdapter]. Modalities meet through
    shared parameters alone: an image of one modality sees what was learned for the others, never their images. For an
    absent modality nothing is to be done: leave its result out.

    Differences from the research code:

    - Prompts start at random. There they start at 0, all alike, get equal gradients and stay alike (`std=0.0`): several
      act as one.
    - The first block, with `carries=False`, has no unused $T$.

    Args:
        dim: width of the tokens.
        num_modalities: number of modalities.
        num_prompts: prompts per modality.
        hidden: width inside $T$ and $A$; half of `dim` by default.
        carries: whether a block before hands prompts on.
        std: standard deviation of the initial prompts.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: when a size is below 1 or `std` negative.

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
        """Set the initial values: small prompts and weights, no biases."""
        nn.init.normal_(self.prompts, std=self.std)
        for layer in self.modules():
            if isinstance(layer, ParallelAdapter):
                layer.reset_parameters()

    @typed
    def forward(
        self, carried: Float[Tensor, "batch modalities prompts dim"] | None = None
    ) -> Float[Tensor, "batch modalities slots dim"]:
        """Prompts for each image, all slots; without `carried` those of the first block, for a batch of one."""
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
            raise ValueError("carried must be None in the first block; build the layer with carries=True")
        if carried.shape[1:] != expected:
            rule = f"carried must have num_modalities, num_prompts and dim={expected}"
            raise ValueError(f"{rule}; received shape {tuple(carried.shape)}")
        return self.carry(carried.flatten(0, 1)).unflatten(0, (-1, self.num_modalities))

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, num_modalities={self.num_modalities}, num_prompts={self.num_prompts}"
        return f"{sizes}, hidden={self.hidden}, carries={self.carries}, std={self.std}"
