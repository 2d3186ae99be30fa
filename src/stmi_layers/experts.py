r"""Attention-triggered mixture of experts (ATMoE): one small expert per head and feature, weighted by attention.

Attention decides for each sample how much each feature counts in each head; every head of a feature has its own expert.
Paper: "DeMo: Decoupled Feature-Based Mixture of Experts for Multi-Modal Object Re-Identification", AAAI 2025,
<https://arxiv.org/abs/2412.10650>.
"""

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._activations import quick_gelu
from stmi_layers._batch_norm import batch_norm
from stmi_layers._checks import check_heads, check_positive
from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed


@typed
def feature_gates(
    query: Float[Tensor, "batch dim"],
    features: Float[Tensor, "batch features dim"],
    query_weight: Float[Tensor, "dim dim"],
    key_weight: Float[Tensor, "dim dim"],
    num_heads: int,
    *,
    present: Bool[Tensor, "batch features"] | None = None,
) -> Float[Tensor, "batch heads features"]:
    r"""Weight the features of a sample by attention, separately in every head.

    $$\operatorname{softmax}_s\Big( \frac{ (\text{query\_weight}\ \text{query})_h \cdot
    (\text{key\_weight}\ \text{features}_s)_h }{ \sqrt{\text{dim} / \text{num\_heads}} } \Big)$$

    The index $h$ takes the part of a vector that belongs to head $h$. The key weights go to the query, so that no
    feature is projected. Logits and softmax are computed in at least float32.

    Args:
        query: one vector per sample, with which the features are compared.
        features: features to weight; finite, also where a feature is absent.
        query_weight: projection of the query, without bias.
        key_weight: projection of the features, without bias.
        num_heads: number of heads; divides `dim`.
        present: True for the features that a sample has; None for all. Absent features get weight 0.

    Returns:
        Weights in at least float32 that sum to 1 over the present features of a sample; 0 when it has none.

    Raises:
        ValueError: when `num_heads` does not divide `dim`.

    Examples:
        >>> query, features = torch.zeros(1, 2), torch.randn(1, 4, 2)  # a zero query weighs evenly
        >>> feature_gates(query, features, torch.eye(2), torch.eye(2), num_heads=1)
        tensor([[[0.2500, 0.2500, 0.2500, 0.2500]]])
    """
    check_heads(query.shape[1], num_heads)
    with without_autocast(query):
        parts = (query, features, query_weight, key_weight)
        query, features, query_weight, key_weight = (at_least_float32(part) for part in parts)
        query = (query @ query_weight.T).unflatten(1, (num_heads, -1))
        query = query * query.shape[2] ** -0.5
        rows = torch.einsum("bhd, hdc -> bhc", query, key_weight.unflatten(0, (num_heads, -1)))
        logits = rows @ features.transpose(1, 2)
        if present is None:
            return logits.softmax(dim=2)
        # Not -inf: a row of nothing but -inf is NaN, and so is its gradient.
        logits = logits.masked_fill(~present[:, None], torch.finfo(logits.dtype).min)
        return torch.where(present.any(dim=1)[:, None, None], logits.softmax(dim=2), 0.0)


@typed
def head_experts(
    features: Float[Tensor, "batch features dim"],
    weight: Float[Tensor, "features heads head_dim head_dim"],
    bias: Float[Tensor, "features heads head_dim"],
) -> Float[Tensor, "batch features dim"]:
    r"""Pass every head of every feature through a small layer of its own.

    $$\operatorname{QuickGELU}( \text{weight}_{sh}\, \text{features}_{s}[h] + \text{bias}_{sh} )$$

    Args:
        features: any number of features; their width is split evenly into heads.
        weight: one square matrix per feature and head.
        bias: one vector per feature and head.

    Returns:
        The heads of every feature side by side, as in `features`.

    Examples:
        >>> weight, bias = torch.zeros(1, 2, 1, 1), torch.tensor([[[0.0], [100.0]]])  # no input, two heads
        >>> head_experts(torch.ones(1, 1, 2), weight, bias)
        tensor([[[  0., 100.]]])
    """
    # The weights stand on the left, so that their gradients have the layout of the parameters, without a copy.
    heads = weight @ rearrange(features, "b features (heads d) -> features heads d b", heads=weight.shape[1])
    return quick_gelu(rearrange(heads + bias[..., None], "features heads d b -> b features (heads d)"))


class GatedExperts(nn.Module):
    r"""Passes every head of several features through its own expert, and weights the results by attention.

    $$y_s = \operatorname{concat}_h\big( a_{hs}\, \operatorname{BN}_{sh}( E_{sh}(z_s[h]) ) \big), \qquad
    q = \operatorname{BN}\big( \operatorname{QuickGELU}( W_q' [z_1 ; \dots ; z_S] + b_q' ) \big)$$

    $z$ are the `features`, the gates $a$ are [`feature_gates`][stmi_layers.experts.feature_gates] of the query $q$, and
    the experts $E$ are [`head_experts`][stmi_layers.experts.head_experts]. All experts are one batched product and one
    batch norm over features times width. The layer learns the experts, the norms, the map to the query and two
    projections. The gates of a sample tell which features it relies on; the method `gates` returns them.

    Differences from the research code:

    - The layer takes any number of features, and a batch of one keeps its axis. In training, batch norm needs at least
      two samples.
    - `present` leaves out features, such as those of missing modalities: their gate and their result are 0, and batch
      norm takes the statistics of a feature from the samples that have the feature.
    - There is no balance loss, which has weight 0 in the research code. `gates` returns the input of such a loss.

    Args:
        dim: width of a feature.
        num_features: number of features, such as 7 for all subsets of three modalities.
        num_heads: heads of the gates; divides `dim`. DeMo takes 4 for persons and 8 for vehicles.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when a size is not positive, or `num_heads` does not divide `dim`; in training also for a batch of
            one, which has no batch statistics. `forward` also raises ValueError for inputs of the wrong size.

    Reference: DeMo, AAAI 2025, section "Attention-Triggered Mixture of Experts".

    Examples:
        >>> experts = GatedExperts(dim=8, num_features=7, num_heads=2)
        >>> features = torch.randn(4, 7, 8)
        >>> experts(features).shape, experts.gates(features).shape
        (torch.Size([4, 7, 8]), torch.Size([4, 2, 7]))
    """

    def __init__(
        self,
        dim: int,
        num_features: int,
        *,
        num_heads: int = 4,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(num_features=num_features)
        check_heads(dim, num_heads)
        self.dim, self.num_features, self.num_heads = dim, num_features, num_heads
        factory = {"device": device, "dtype": dtype}
        self.join = nn.Linear(num_features * dim, dim, **factory)
        self.norm_joined = nn.BatchNorm1d(dim, **factory)
        self.query_weight = nn.Parameter(torch.empty(dim, dim, **factory))
        self.key_weight = nn.Parameter(torch.empty(dim, dim, **factory))
        heads = (num_features, num_heads, dim // num_heads)
        self.expert_weight = nn.Parameter(torch.empty(*heads, dim // num_heads, **factory))
        self.expert_bias = nn.Parameter(torch.empty(heads, **factory))
        self.norm_experts = nn.BatchNorm1d(num_features * dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of `nn.Linear` and `nn.BatchNorm1d`."""
        for layer in (self.join, self.norm_joined, self.norm_experts):
            layer.reset_parameters()
        for parameter, fan_in in (
            (self.query_weight, self.dim),
            (self.key_weight, self.dim),
            (self.expert_weight, self.dim // self.num_heads),
            (self.expert_bias, self.dim // self.num_heads),
        ):
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)

    @typed
    def forward(
        self,
        features: Float[Tensor, "batch features dim"],
        present: Bool[Tensor, "batch features"] | None = None,
    ) -> Float[Tensor, "batch features dim"]:
        """Return the weighted results of the experts, one per feature; 0 where a feature is absent."""
        features = self._present(features, present)
        gates = self._gates(features, present)
        experts = head_experts(features, self.expert_weight, self.expert_bias).flatten(1)
        keep = None if present is None else present.repeat_interleave(self.dim, dim=1)
        experts = batch_norm(self.norm_experts, experts, keep).unflatten(1, (self.num_features, self.num_heads, -1))
        gated = (experts * gates.transpose(1, 2)[..., None]).flatten(2).to(features.dtype)
        return gated if present is None else torch.where(present[..., None], gated, 0.0)

    @typed
    def gates(
        self,
        features: Float[Tensor, "batch features dim"],
        present: Bool[Tensor, "batch features"] | None = None,
    ) -> Float[Tensor, "batch heads features"]:
        """Return the weights of the features in each head; they sum to 1 over the present features.

        Call this method in evaluation mode, because batch norm updates its running statistics in training mode.
        """
        return self._gates(self._present(features, present), present)

    def _present(self, features: Tensor, present: Tensor | None) -> Tensor:
        if features.shape[1:] != (self.num_features, self.dim):
            rule = f"features must have num_features={self.num_features} rows of width dim={self.dim}"
            raise ValueError(f"{rule}; received shape {tuple(features.shape)}")
        return features if present is None else torch.where(present[..., None], features, 0.0)

    def _gates(self, features: Tensor, present: Tensor | None) -> Tensor:
        keep = None if present is None else present.any(dim=1, keepdim=True).expand(-1, self.dim)
        query = batch_norm(self.norm_joined, quick_gelu(self.join(features.flatten(1))), keep)
        weights = (self.query_weight, self.key_weight, self.num_heads)
        return feature_gates(query.to(features.dtype), features, *weights, present=present)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_features={self.num_features}, num_heads={self.num_heads}"
