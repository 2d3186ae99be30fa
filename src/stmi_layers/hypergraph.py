r"""Tokens of all modalities as nodes of one hypergraph: Cross-Modal Hypergraph Interaction (CHI).

Hyperedges join similar tokens, and a hypergraph convolution lets them exchange information (eq. 14-16).
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._precision import without_autocast
from stmi_layers._typing import typed
from stmi_layers.incidence import check_similarity, similarity_incidence


@typed
def hypergraph_conv(
    nodes: Float[Tensor, "batch nodes dim"],
    incidence: Bool[Tensor, "batch nodes edges"] | Float[Tensor, "batch nodes edges"],
    edge_weight: Float[Tensor, " edges"] | None = None,
    *,
    normalization: str = "row",
) -> Float[Tensor, "batch nodes dim"]:
    r"""Carry features from nodes to hyperedges and back: the sum of eq. 15.

    $$\text{row: } D_v^{-1} H W D_e^{-1} H^\top X \qquad \text{none: } H W D_e^{-1} H^\top X \qquad
    \text{symmetric: } D_v^{-1/2} H W D_e^{-1} H^\top D_v^{-1/2} X$$

    $X$ are the `nodes`, $H$ the `incidence` and $W$ the diagonal matrix of `edge_weight`; $D_v$ and $D_e$ hold the row
    and column sums of $H$. A hyperedge $e$ has the mean of its nodes, $h_e$. With "row" a node receives the mean of
    $w_e h_e$ over its hyperedges, with "none" their sum, which is eq. 15 to the letter; "symmetric" is Bai et al.
    Unlike theirs, $D_v$ is free of $W$: weights are learned, and a sum of them may come to zero. The result is linear
    in `nodes` and in `edge_weight`, and computed in at least float32.

    Args:
        nodes: features of the nodes.
        incidence: which nodes are in which hyperedges; if not boolean, memberships of at least 0 (not checked).
        edge_weight: $w_e$, any real number per hyperedge; None is 1.
        normalization: "row", "symmetric" or "none".

    Returns:
        New features, in the dtype of `nodes`; 0 for a node in no hyperedge. With "row" and weight 1 the others are
        convex combinations of `nodes`.

    Raises:
        ValueError: when `normalization` is none of the three.

    Reference: Bai et al., "Hypergraph Convolution and Hypergraph Attention", Pattern Recognition 2021,
    <https://arxiv.org/abs/1901.08150>.

    Examples:
        >>> nodes = torch.tensor([[[1.0], [3.0], [7.0]]])
        >>> incidence = torch.tensor([[[True, False], [True, True], [False, True]]])  # hyperedges with means 2 and 5
        >>> hypergraph_conv(nodes, incidence)
        tensor([[[2.0000],
                 [3.5000],
                 [5.0000]]])
    """
    _check_normalization(normalization)
    membership = incidence.to(torch.promote_types(nodes.dtype, torch.float32))
    node_degree, edge_degree = membership.sum(dim=2), membership.sum(dim=1)
    edge_scale = _inverse(edge_degree) if edge_weight is None else _inverse(edge_degree) * edge_weight
    with without_autocast(nodes):
        # The small operator first: cheaper than two steps while there are fewer nodes than features.
        operator = (membership * edge_scale[:, None, :]) @ membership.transpose(1, 2)
        if normalization == "row":
            operator = operator * _inverse(node_degree)[:, :, None]
        elif normalization == "symmetric":
            scale = _inverse(node_degree).sqrt()
            operator = operator * scale[:, :, None] * scale[:, None, :]
        return (operator @ nodes.to(operator.dtype)).to(nodes.dtype)


def _inverse(degree: Tensor) -> Tensor:
    """1 / degree, and 0 for a degree of 0; the gradient is finite there, too."""
    occupied = degree > 0
    return torch.where(occupied, 1 / torch.where(occupied, degree, 1.0), 0.0)


class HypergraphConv(nn.Module):
    r"""A linear map, then [`hypergraph_conv`][stmi_layers.hypergraph.hypergraph_conv], bias and activation (eq. 15).

    $$h_i' = \sigma\Big( \frac{1}{|\varepsilon(i)|} \sum_{e \in \varepsilon(i)} w_e h_e + b_i \Big)$$

    $\varepsilon(i)$ are the hyperedges of node $i$, and $h_e$ is the mean of the mapped nodes in $e$. Learned are the
    map, $w_e$ if `num_edges` is given and $b_i$ if `num_nodes` is: then place $i$ must mean the same in every sample.

    Differences from the paper:

    - Eq. 15 writes no linear map; the convolution of Bai et al., which it cites, has one. It is without a bias.
    - Eq. 15 sums over the hyperedges of a node (`normalization="none"`). The default is the mean, which does not grow
      with the number of similar nodes.

    Differences from the research code: that has neither $w_e$ nor $b_i$; leave out both counts for its reading.

    Args:
        in_dim: width of the nodes.
        out_dim: width of the result.
        num_edges: number of hyperedges, to learn a weight for each, from 1 on.
        num_nodes: number of nodes, to learn a bias vector for each, from 0 on.
        normalization: "row", "symmetric" or "none".
        activation: $\sigma$, a function or a module; the paper names none.
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: when `normalization` is unknown or a size is not positive.

    Examples:
        >>> conv = HypergraphConv(8, 4, num_nodes=3)
        >>> conv(torch.randn(2, 3, 8), torch.ones(2, 3, 5, dtype=torch.bool)).shape
        torch.Size([2, 3, 4])
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        num_edges: int | None = None,
        num_nodes: int | None = None,
        normalization: str = "row",
        activation: Callable[[Tensor], Tensor] = F.silu,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _check_normalization(normalization)
        _check_positive(in_dim=in_dim, out_dim=out_dim, num_edges=num_edges, num_nodes=num_nodes)
        self.in_dim, self.out_dim, self.num_edges, self.num_nodes = in_dim, out_dim, num_edges, num_nodes
        self.normalization, self.activation = normalization, activation
        factory = {"device": device, "dtype": dtype}
        self.linear = nn.Linear(in_dim, out_dim, bias=False, **factory)
        self.edge_weight = None if num_edges is None else nn.Parameter(torch.empty(num_edges, **factory))
        self.node_bias = None if num_nodes is None else nn.Parameter(torch.empty(num_nodes, out_dim, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of `nn.Linear`, weights of 1 and biases of 0."""
        self.linear.reset_parameters()
        if self.edge_weight is not None:
            nn.init.ones_(self.edge_weight)
        if self.node_bias is not None:
            nn.init.zeros_(self.node_bias)

    @typed
    def forward(
        self,
        nodes: Float[Tensor, "batch nodes in_dim"],
        incidence: Bool[Tensor, "batch nodes edges"] | Float[Tensor, "batch nodes edges"],
    ) -> Float[Tensor, "batch nodes out_dim"]:
        """Update `nodes` along `incidence`; a node in no hyperedge becomes the activation of its bias."""
        # Not `in`: with dynamic shapes a compiler knows sizes by `!=` alone.
        if nodes.shape[2] != self.in_dim or (self.num_nodes is not None and nodes.shape[1] != self.num_nodes):
            rule = f"nodes must have width in_dim={self.in_dim} and count num_nodes={self.num_nodes}"
            raise ValueError(f"{rule}; received shape {tuple(nodes.shape)}")
        if self.num_edges is not None and incidence.shape[2] != self.num_edges:
            rule = f"incidence must count num_edges={self.num_edges} hyperedges"
            raise ValueError(f"{rule}; received shape {tuple(incidence.shape)}")
        mapped = self.linear(nodes)
        received = hypergraph_conv(mapped, incidence, self.edge_weight, normalization=self.normalization)
        biased = received if self.node_bias is None else received + self.node_bias
        return self.activation(biased).to(nodes.dtype)

    def extra_repr(self) -> str:
        counts = f"num_edges={self.num_edges}, num_nodes={self.num_nodes}"
        return f"{self.in_dim}, {self.out_dim}, {counts}, normalization={self.normalization!r}"


class CrossModalHypergraph(nn.Module):
    r"""Lets the semantic tokens of all modalities exchange information with those similar to them (eq. 14-16).

    $$H^{(l+1)} = \operatorname{HypergraphConv}_l\big(H^{(l)}\big) + H^{(l)}$$

    $H^{(0)}$ are the `tokens`, the first modality first: nodes of one hypergraph per sample, built once by
    [`similarity_incidence`][stmi_layers.incidence.similarity_incidence]. Learned are the layers, each a
    [`HypergraphConv`][stmi_layers.hypergraph.HypergraphConv] with a weight per hyperedge and a bias per node. Whether
    tokens meet at all depends on `threshold`: see
    [`incidence_statistics`][stmi_layers.incidence.incidence_statistics] of `incidence(tokens)`.

    A modality that is missing in a sample takes no part: its tokens are in no hyperedge and come out as they went in.
    So would a sample without any modality; refuse it where the data enters, for a check in here would stall the device.

    Differences from the paper: those of `HypergraphConv`.

    Differences from the research code: similarity is the cosine, since a distance means something else at every width
    and scale (`similarity="euclidean"`), and the residual follows the activation (eq. 16), without a group norm.

    Args:
        dim: width of the tokens.
        num_nodes: number of tokens of all modalities together.
        num_layers: number of convolutions.
        threshold: least cosine, or greatest distance, within a hyperedge.
        similarity: "cosine" or "euclidean".
        normalization: "row", "symmetric" or "none", as in [`hypergraph_conv`][stmi_layers.hypergraph.hypergraph_conv].
        device: of the parameters.
        dtype: of the parameters.

    Raises:
        ValueError: when an option is unknown, a size is not positive or `threshold` is a negative distance.

    Reference: STMI, AAAI 2026, section "Cross-Modal Hypergraph Interaction".

    Examples:
        >>> interaction = CrossModalHypergraph(dim=8, num_nodes=15)
        >>> tokens, present = torch.randn(1, 3, 5, 8), torch.tensor([[True, False, True]])
        >>> torch.equal(interaction(tokens, present)[:, 1], tokens[:, 1])
        True
    """

    def __init__(
        self,
        dim: int,
        num_nodes: int,
        *,
        num_layers: int = 1,
        threshold: float = 0.5,
        similarity: str = "cosine",
        normalization: str = "row",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_similarity(similarity, threshold)
        _check_normalization(normalization)
        _check_positive(dim=dim, num_nodes=num_nodes, num_layers=num_layers)
        self.dim, self.num_nodes, self.num_layers, self.threshold = dim, num_nodes, num_layers, threshold
        self.similarity, self.normalization = similarity, normalization
        counts = {"num_edges": num_nodes, "num_nodes": num_nodes}
        options = {"normalization": normalization, "device": device, "dtype": dtype}
        self.layers = nn.ModuleList(HypergraphConv(dim, dim, **counts, **options) for _ in range(num_layers))

    def reset_parameters(self) -> None:
        """Set the initial values of every layer."""
        for layer in self.modules():
            if isinstance(layer, HypergraphConv):
                layer.reset_parameters()

    @typed
    def forward(
        self,
        tokens: Float[Tensor, "batch modalities tokens dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch modalities tokens dim"]:
        """Update the `tokens`; `present` is False where a sample misses a modality, None when all are there."""
        incidence = self.incidence(tokens, present)
        # Not left to the incidence: 0 times the NaN of an absent modality is NaN.
        taking_part = tokens if present is None else torch.where(present[:, :, None, None], tokens, 0.0)
        nodes = taking_part.flatten(1, 2)
        for layer in self.layers:
            nodes = layer(nodes, incidence) + nodes
        updated = nodes.unflatten(1, tokens.shape[1:3])
        return updated if present is None else torch.where(present[:, :, None, None], updated, tokens)

    @typed
    def incidence(
        self,
        tokens: Float[Tensor, "batch modalities tokens dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Bool[Tensor, "batch nodes edges"]:
        """The hypergraph of `forward`, between the tokens of all modalities."""
        modalities, count, dim = tokens.shape[1:]
        if (modalities * count, dim) != (self.num_nodes, self.dim):
            rule = f"tokens must have width dim={self.dim} and count num_nodes={self.num_nodes} over all modalities"
            raise ValueError(f"{rule}; received shape {tuple(tokens.shape)}")
        present = None if present is None else present.repeat_interleave(count, dim=1)
        nodes = tokens.flatten(1, 2)
        return similarity_incidence(nodes, self.threshold, similarity=self.similarity, present=present)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_nodes={self.num_nodes}, num_layers={self.num_layers}, threshold={self.threshold}, "
            f"similarity={self.similarity!r}, normalization={self.normalization!r}"
        )


def _check_normalization(normalization: str) -> None:
    if normalization not in ("row", "symmetric", "none"):
        raise ValueError(f'normalization must be "row", "symmetric" or "none"; received {normalization!r}')


def _check_positive(**sizes: int | None) -> None:
    for name, size in sizes.items():
        if size is not None and size < 1:
            raise ValueError(f"{name} must be at least 1; received {size}")
