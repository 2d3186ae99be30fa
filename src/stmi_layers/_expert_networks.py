"""Feed-forward networks of the same form, one per expert, computed as one batched product."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stmi_layers._checks import check_positive, check_probability
from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed


class ExpertNetworks(nn.Module):
    r"""Several feed-forward networks of the same form, computed together.

    $$E_e(x_e) = x_e + \operatorname{Dropout}\big( W'_e \operatorname{GELU}( W_e\, N_e(x_e) + b_e ) + b'_e \big)$$

    Args:
        dim: width of the tokens.
        num_experts: number of networks.
        mlp_ratio: hidden width, in units of `dim`.
        dropout: probability, in training, that a feature is zeroed before the residual.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int,
        *,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        hidden = int(mlp_ratio * dim)
        check_positive(dim=dim, num_experts=num_experts)
        if hidden < 1:
            raise ValueError(f"mlp_ratio * dim must be at least 1; received mlp_ratio={mlp_ratio}, dim={dim}")
        check_probability("dropout", dropout)
        self.dim, self.num_experts, self.mlp_ratio = dim, num_experts, mlp_ratio
        self.dropout = nn.Dropout(dropout)
        factory = {"device": device, "dtype": dtype}
        self.norm_weight = nn.Parameter(torch.empty(num_experts, dim, **factory))
        self.norm_bias = nn.Parameter(torch.empty(num_experts, dim, **factory))
        self.expand_weight = nn.Parameter(torch.empty(num_experts, hidden, dim, **factory))
        self.expand_bias = nn.Parameter(torch.empty(num_experts, hidden, **factory))
        self.contract_weight = nn.Parameter(torch.empty(num_experts, dim, hidden, **factory))
        self.contract_bias = nn.Parameter(torch.empty(num_experts, dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values of every expert: those of `nn.LayerNorm` and `nn.Linear`."""
        nn.init.ones_(self.norm_weight)
        nn.init.zeros_(self.norm_bias)
        for weight, bias in (
            (self.expand_weight, self.expand_bias),
            (self.contract_weight, self.contract_bias),
        ):
            for parameter in (weight, bias):
                nn.init.uniform_(parameter, -(weight.shape[2] ** -0.5), weight.shape[2] ** -0.5)

    @typed
    def forward(
        self, tokens: Float[Tensor, "batch sequences tokens dim"]
    ) -> Float[Tensor, "batch networks tokens dim"]:
        """Pass the tokens of every expert through its network; a single sequence goes through all networks."""
        if tokens.shape[1] not in (1, self.num_experts) or tokens.shape[3] != self.dim:
            rule = f"tokens must have one sequence or num_experts={self.num_experts}, of width dim={self.dim}"
            raise ValueError(f"{rule}; received shape {tuple(tokens.shape)}")
        rows = self._normalised(tokens.transpose(0, 1)).flatten(1, 2)
        hidden = F.gelu(torch.baddbmm(self.expand_bias[:, None], rows, self.expand_weight.transpose(1, 2)))
        change = torch.baddbmm(self.contract_bias[:, None], hidden, self.contract_weight.transpose(1, 2))
        change = change.unflatten(1, (tokens.shape[0], tokens.shape[2])).transpose(0, 1)
        return (tokens + self.dropout(change)).to(tokens.dtype)

    def _normalised(self, tokens: Tensor) -> Tensor:
        with without_autocast(tokens):
            unit = F.layer_norm(at_least_float32(tokens), (self.dim,))
            return (unit * self.norm_weight[:, None, None] + self.norm_bias[:, None, None]).to(tokens.dtype)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_experts={self.num_experts}, mlp_ratio={self.mlp_ratio}, dropout={self.dropout.p}"
