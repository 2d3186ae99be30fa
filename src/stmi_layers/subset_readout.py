r"""Hierarchical decoupling (HDM): one descriptor per subset of the modalities, read by its own query.

A learned query per subset reads the tokens of its members: features of one modality, or features that several share.
Paper: "DeMo: Decoupled Feature-Based Mixture of Experts for Multi-Modal Object Re-Identification", AAAI 2025,
<https://arxiv.org/abs/2412.10650>.
"""

from itertools import combinations
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._checks import check_choice, check_heads, check_positive, check_probability
from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed

Subsets = Literal["all", "ends"]
Incomplete = Literal["read", "drop"]


def modality_subsets(num_modalities: int, subsets: Subsets = "all") -> Bool[Tensor, "subsets modalities"]:
    """List the subsets of the modalities: small subsets first, and subsets of one size in the order of their members.

    Args:
        num_modalities: number of modalities $M$, at least 1.
        subsets: "all" for the $2^M - 1$ non-empty subsets; "ends" for each modality alone and all together.

    Returns:
        One row per subset, True for its members.

    Raises:
        ValueError: when `num_modalities` is not positive, or `subsets` is unknown.

    Examples:
        >>> modality_subsets(2)
        tensor([[ True, False],
                [False,  True],
                [ True,  True]])
    """
    check_positive(num_modalities=num_modalities)
    check_choice("subsets", subsets, ("all", "ends"))
    sizes = range(1, num_modalities + 1) if subsets == "all" else sorted({1, num_modalities})
    members = [chosen for size in sizes for chosen in combinations(range(num_modalities), size)]
    return torch.tensor([[modality in chosen for modality in range(num_modalities)] for chosen in members])


@typed
def subset_presence(
    present: Bool[Tensor, "batch modalities"],
    subsets: Bool[Tensor, "subsets modalities"],
    *,
    incomplete: Incomplete = "read",
) -> Bool[Tensor, "batch subsets"]:
    """Return True for the subsets of which a sample has enough members, one row per sample.

    Args:
        present: True for the modalities that a sample has.
        subsets: rows of [`modality_subsets`][stmi_layers.subset_readout.modality_subsets].
        incomplete: "read" when one present member is enough, "drop" when every member must be present.

    Raises:
        ValueError: when `incomplete` is unknown.

    Examples:
        >>> subset_presence(torch.tensor([[True, False]]), modality_subsets(2))
        tensor([[ True, False,  True]])
        >>> subset_presence(torch.tensor([[True, False]]), modality_subsets(2), incomplete="drop")
        tensor([[ True, False, False]])
    """
    check_choice("incomplete", incomplete, ("read", "drop"))
    if incomplete == "read":
        return (present[:, None] & subsets).any(dim=2)
    return (present[:, None] | ~subsets).all(dim=2)


@typed
def subset_attention(
    tokens: Float[Tensor, "batch modalities tokens dim"],
    rows: Float[Tensor, "subsets heads dim"],
    subsets: Bool[Tensor, "subsets modalities"],
    *,
    present: Bool[Tensor, "batch modalities"] | None = None,
) -> Float[Tensor, "batch subsets heads modalities tokens"]:
    r"""Spread the attention of every subset over the tokens of its members.

    $$\operatorname{softmax}_{(m, n)\,:\, m \in s}\big( \text{rows}_{sh} \cdot \text{tokens}_{mn} \big)$$

    The softmax of a subset $s$ and head $h$ runs over all tokens $n$ of all its members $m$ together, in at least
    float32. A row is a query, already multiplied by the scale and the key weights.

    Args:
        tokens: tokens of every modality; finite, also where a modality is absent.
        rows: one vector per subset and head, whose products with the tokens are the logits of every sample.
        subsets: True for the members of each subset.
        present: True for the modalities that a sample has; None for all. No subset reads an absent modality.

    Returns:
        Weights in at least float32, which sum to 1 over the tokens of a subset; all 0 when no member is present.

    Examples:
        >>> tokens, rows = torch.zeros(1, 2, 1, 4), torch.zeros(3, 1, 4)  # two modalities with one token each
        >>> subset_attention(tokens, rows, modality_subsets(2))[0, :, 0, :, 0]
        tensor([[1.0000, 0.0000],
                [0.0000, 1.0000],
                [0.5000, 0.5000]])
    """
    read = subsets[None] if present is None else subsets & present[:, None]
    with without_autocast(tokens):
        # One product of all subsets with all tokens: splitting costs more than the half that subsets leave out.
        logits = at_least_float32(rows).flatten(0, 1) @ at_least_float32(tokens).flatten(1, 2).transpose(1, 2)
    logits = logits.unflatten(2, tokens.shape[1:3]).unflatten(1, rows.shape[:2])
    # Not -inf: a row of nothing but -inf is NaN, and so is its gradient.
    logits = logits.masked_fill(~read[:, :, None, :, None], torch.finfo(logits.dtype).min)
    weights = logits.flatten(3).softmax(dim=-1).view(logits.shape)
    return weights if present is None else torch.where(read.any(dim=2)[:, :, None, None, None], weights, 0.0)


class SubsetReadout(nn.Module):
    r"""Reads one vector for every subset of the modalities: features of one modality, or features that several share.

    $$z_s = W^o_s \operatorname{concat}_h\Big( W^v_{sh} \sum_{m \in s,\, n} a_{shmn}\, x_{mn} + b^v_{sh} \Big) + b^o_s,
    \qquad \text{rows}_{sh} = \frac{ (W^q_{sh} t_s + b^q_{sh})\, W^k_{sh} }{ \sqrt{\text{dim} / \text{heads}} }$$

    $x$ are the `tokens`, $t_s$ is a learned query and $a$ is
    [`subset_attention`][stmi_layers.subset_readout.subset_attention] with these rows. Each subset has its own
    multi-head attention: `nn.MultiheadAttention` from $t_s$ to the tokens of the members, computed in another order.
    Because the query is the same for every sample, the key weights multiply the query, the value weights multiply the
    weighted sum, and no token is projected. Subsets come in the order of
    [`modality_subsets`][stmi_layers.subset_readout.modality_subsets]: `(R, N, T, RN, RT, NT, RNT)` for three.

    Differences from the research code:

    - The biases of the keys are left out, because they cancel in the softmax.
    - Any number of modalities. `present` leaves out missing modalities, for which the research code reads black images.
      A subset reads its present members; with `incomplete="drop"` a subset is 0 unless all its members are present.
    - The research code has heads of width 64 and drops a tenth of the attention weights in training; to get both, set
      `num_heads=dim // 64, dropout=0.1`.

    Args:
        dim: width of the tokens.
        num_modalities: number of modalities.
        num_heads: heads of each attention; divides `dim`.
        dropout: probability, in training, that an attention weight is zeroed.
        subsets: "all", which for $M$ modalities are $2^M - 1$ subsets, or "ends": each modality alone and all together.
        incomplete: "read" or "drop" a subset with absent members.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when an option is out of range, or an input has the wrong size.

    Reference: DeMo, AAAI 2025, section "Hierarchical Decoupling Module".

    Examples:
        >>> readout = SubsetReadout(dim=8, num_modalities=3, num_heads=2)
        >>> readout(torch.randn(2, 3, 129, 8)).shape
        torch.Size([2, 7, 8])
    """

    subsets: Tensor

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        *,
        num_heads: int = 8,
        dropout: float = 0.0,
        subsets: Subsets = "all",
        incomplete: Incomplete = "read",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_probability("dropout", dropout)
        check_choice("incomplete", incomplete, ("read", "drop"))
        members = modality_subsets(num_modalities, subsets)
        self.dim, self.num_modalities, self.num_heads = dim, num_modalities, num_heads
        self.kind: Subsets = subsets
        self.incomplete: Incomplete = incomplete
        self.dropout = nn.Dropout(dropout)
        factory = {"device": device, "dtype": dtype}
        self.register_buffer("subsets", torch.empty_like(members, device=device), persistent=False)
        weights = (nn.Parameter(torch.empty(len(members), dim, dim, **factory)) for _ in range(4))
        self.query_weight, self.key_weight, self.value_weight, self.out_weight = weights
        rows = (nn.Parameter(torch.empty(len(members), dim, **factory)) for _ in range(4))
        self.queries, self.query_bias, self.value_bias, self.out_bias = rows
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of `nn.MultiheadAttention`, and queries of about unit length."""
        self.subsets.copy_(modality_subsets(self.num_modalities, self.kind))
        unit, xavier = self.dim**-0.5, (1.5 / self.dim) ** 0.5  # Xavier bound of the three, stacked
        nn.init.normal_(self.queries, std=unit)
        for weight in (self.query_weight, self.key_weight, self.value_weight):
            nn.init.uniform_(weight, -xavier, xavier)
        nn.init.uniform_(self.out_weight, -unit, unit)
        for bias in (self.query_bias, self.value_bias, self.out_bias):
            nn.init.zeros_(bias)

    @typed
    def forward(
        self,
        tokens: Float[Tensor, "batch modalities tokens dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch subsets dim"]:
        """Return one vector per subset, read from `tokens`; 0 where `present` leaves a subset nothing to read."""
        tokens, weights = self._attend(tokens, present)
        weights = self.dropout(weights).flatten(3).flatten(1, 2).to(tokens.dtype)
        read = rearrange(weights @ tokens.flatten(1, 2), "b (s heads) dim -> s heads dim b", heads=self.num_heads)
        # The weights stand on the left, so that their gradients have the layout of the parameters, without a copy.
        values = (self.value_weight.unflatten(1, (self.num_heads, -1)) @ read).flatten(1, 2)
        output = self.out_weight @ (values + self.value_bias[..., None]) + self.out_bias[..., None]
        output = output.permute(2, 0, 1).to(tokens.dtype)
        if present is None:
            return output
        return torch.where(subset_presence(present, self.subsets, incomplete=self.incomplete)[..., None], output, 0.0)

    @typed
    def attention(
        self,
        tokens: Float[Tensor, "batch modalities tokens dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch subsets heads modalities tokens"]:
        """Return the weight of each token in each subset of `forward`; weights sum to 1 over the present members."""
        return self._attend(tokens, present)[1]

    def _attend(self, tokens: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor]:
        if tokens.shape[1] != self.num_modalities or tokens.shape[3] != self.dim:
            rule = f"tokens must have num_modalities={self.num_modalities} and width dim={self.dim}"
            raise ValueError(f"{rule}; received shape {tuple(tokens.shape)}")
        if present is not None:
            tokens = torch.where(present[..., None, None], tokens, 0.0)
        return tokens, subset_attention(tokens, self._rows(), self.subsets, present=present)

    def _rows(self) -> Tensor:
        query = (self.query_weight @ self.queries[..., None])[..., 0] + self.query_bias
        query = rearrange(query, "subsets (heads d) -> subsets heads 1 d", heads=self.num_heads)
        with without_autocast(query):
            query = at_least_float32(query) * query.shape[-1] ** -0.5
            key_weight = at_least_float32(self.key_weight).unflatten(1, (self.num_heads, -1))
            return (query @ key_weight)[:, :, 0]

    def extra_repr(self) -> str:
        options = f"num_heads={self.num_heads}, dropout={self.dropout.p}, subsets={self.kind!r}"
        return f"dim={self.dim}, num_modalities={self.num_modalities}, {options}, incomplete={self.incomplete!r}"
