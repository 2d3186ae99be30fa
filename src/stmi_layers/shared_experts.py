r"""Experts that all modalities share, mixed softly token by token (CSSE).

One router, which does not know the modality, weights every token for every expert. The published text fixes this
structure and leaves sizes and norms open; the layer documents its reading.
Paper: NEXT, arXiv 2505.20001, <https://arxiv.org/abs/2505.20001>.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._expert_networks import ExpertNetworks
from stmi_layers._precision import at_least_float32, call_wide, without_autocast
from stmi_layers._typing import typed


@typed
def token_gates(
    tokens: Float[Tensor, "batch tokens dim"],
    weight: Float[Tensor, "experts dim"],
    bias: Float[Tensor, " experts"],
) -> Float[Tensor, "batch experts tokens"]:
    r"""Compute the share of every token that each expert gets.

    $$\operatorname{softmax}_e( \text{weight}_e \cdot \text{tokens}_n + \text{bias}_e )$$

    Args:
        tokens: tokens to distribute among the experts.
        weight: one vector per expert.
        bias: one number per expert.

    Returns:
        Shares in at least float32; the shares of a token sum to 1 over the experts.

    Examples:
        >>> token_gates(torch.zeros(1, 1, 2), torch.zeros(4, 2), torch.zeros(4)).flatten()
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
    """
    with without_autocast(tokens):
        return F.linear(*(at_least_float32(part) for part in (tokens, weight, bias))).softmax(dim=2).transpose(1, 2)


class SharedExperts(nn.Module):
    r"""Passes the patches of all modalities through every expert, weighted token by token by a router.

    $$y_{en} = p_{en}\, E_e(x_n), \qquad E_e(x) = x + \operatorname{Dropout}\big( \operatorname{MLP}_e(
    \operatorname{LN}_e(x) ) \big)$$

    $x$ are the `patches` of all modalities, the first modality first, and $p$ is
    [`token_gates`][stmi_layers.shared_experts.token_gates]. With one expert this is the feed-forward half of a
    transformer block. The layer learns the router and the networks.

    The paper leaves the following open. In this layer the mixture is dense: every expert gets every token, no token is
    dropped, and the results of the experts stay separate. No loss balances the experts, and dense soft routers are
    known to collapse: monitor the mean of `gates` over batch, modalities and patches, one number per expert.

    Args:
        dim: width of the patches.
        num_experts: number of experts.
        mlp_ratio: hidden width of a network, in units of `dim`.
        dropout: probability, in training, that a feature is zeroed before the residual.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when a size is not positive, or `dropout` is not a probability. `forward` also raises ValueError for
            inputs of the wrong size.

    Examples:
        >>> experts = SharedExperts(dim=8, num_experts=4)
        >>> patches = torch.randn(2, 3, 10, 8)
        >>> experts(patches).shape, experts.gates(patches).shape
        (torch.Size([2, 4, 30, 8]), torch.Size([2, 4, 3, 10]))
    """

    def __init__(
        self,
        dim: int,
        num_experts: int = 4,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.num_experts = dim, num_experts
        factory = {"device": device, "dtype": dtype}
        self.experts = ExpertNetworks(dim, num_experts, mlp_ratio=mlp_ratio, dropout=dropout, **factory)
        self.router = nn.Linear(dim, num_experts, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of `nn.LayerNorm` and `nn.Linear`."""
        self.experts.reset_parameters()
        self.router.reset_parameters()

    @typed
    def forward(
        self,
        patches: Float[Tensor, "batch modalities patches dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch experts tokens dim"]:
        """Return the weighted `patches` of every expert; tokens of absent modalities are 0: leave them out later."""
        tokens = self._present(patches, present).flatten(1, 2)
        gates = self._gates(tokens).to(tokens.dtype)
        output = gates[..., None] * self.experts(tokens[:, None])
        if present is None:
            return output
        return torch.where(present.repeat_interleave(patches.shape[2], dim=1)[:, None, :, None], output, 0.0)

    @typed
    def gates(
        self,
        patches: Float[Tensor, "batch modalities patches dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch experts modalities patches"]:
        """Return each expert's share of every patch; shares sum to 1 over the experts, and are 0 where absent."""
        tokens = self._present(patches, present).flatten(1, 2)
        gates = self._gates(tokens).unflatten(2, patches.shape[1:3])
        return gates if present is None else torch.where(present[:, None, :, None], gates, 0.0)

    def _gates(self, tokens: Tensor) -> Tensor:
        """Compute `token_gates` by the router."""
        return call_wide(self.router, tokens).softmax(dim=2).transpose(1, 2)

    def _present(self, patches: Tensor, present: Tensor | None) -> Tensor:
        if patches.shape[3] != self.dim:
            raise ValueError(f"patches must have width dim={self.dim}; received shape {tuple(patches.shape)}")
        return patches if present is None else torch.where(present[..., None, None], patches, 0.0)

    def extra_repr(self) -> str:
        options = f"mlp_ratio={self.experts.mlp_ratio}, dropout={self.experts.dropout.p}"
        return f"dim={self.dim}, num_experts={self.num_experts}, {options}"
