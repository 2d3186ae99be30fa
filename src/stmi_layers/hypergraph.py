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

from stmi_layers._checks import check_positive
from stmi_layers._typing import typed
from stmi_layers.convolution import Normalization, check_normalization, hypergraph_conv
from stmi_layers.incidence import Similarity, check_similarity, similarity_incidence


class HypergraphConv(nn.Module):
    r"""Linear map, then [`hypergraph_conv`][stmi_layers.convolution.hypergraph_conv], bias and activation (eq. 15).

    $$h_i' = \sigma\Big( \frac{1}{|\varepsilon(i)|} \sum_{e \in \varepsilon(i)} w_e h_e + b_i \Big)$$

    $\varepsilon(i)$ are the hyperedges of node $i$, and $h_e$ is the mean of the mapped nodes in $e$. The layer learns
    the map, $w_e$ if `num_edges` is given, and $b_i$ if `num_nodes` is given. With $w_e$ or $b_i$, each index must mean
    the same in every sample.

    Differences from the paper:

    - Eq. 15 writes no linear map; the convolution of Bai et al., which the paper cites, has one.
    - Eq. 15 sums over the hyperedges of a node (`normalization="none"`). The default is the mean, which does not grow
      with the number of similar nodes.

    Differences from the research code: the research code has neither $w_e$ nor $b_i$, but a bias in the linear map,
    which the paper does not have. Leave out `num_edges` for this reading; equal $b_i$ for all nodes act as that bias.

    Args:
        in_dim: width of the nodes.
        out_dim: width of the result.
        num_edges: number of hyperedges, to learn a weight per hyperedge, initially 1; None learns no weights.
        num_nodes: number of nodes, to learn a bias vector per node, initially 0; None learns no biases.
        normalization: "row", "symmetric" or "none".
        activation: $\sigma$, a function or a module; SiLU by default, because the paper names no activation.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `normalization` is unknown or a size is not positive. `forward` also raises ValueError for
            inputs of the wrong size.

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
        normalization: Normalization = "row",
        activation: Callable[[Tensor], Tensor] = F.silu,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_normalization(normalization)
        check_positive(in_dim=in_dim, out_dim=out_dim, num_edges=num_edges, num_nodes=num_nodes)
        self.in_dim, self.out_dim, self.num_edges, self.num_nodes = in_dim, out_dim, num_edges, num_nodes
        self.normalization: Normalization = normalization
        self.activation = activation
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
        # `!=` instead of `in`: torch.compile cannot evaluate `in` on a symbolic size.
        if nodes.shape[2] != self.in_dim or (self.num_nodes is not None and nodes.shape[1] != self.num_nodes):
            rule = f"nodes must have width in_dim={self.in_dim} and count num_nodes={self.num_nodes}"
            raise ValueError(f"{rule}; received shape {tuple(nodes.shape)}")
        if self.num_edges is not None and incidence.shape[2] != self.num_edges:
            rule = f"incidence must have num_edges={self.num_edges} hyperedges"
            raise ValueError(f"{rule}; received shape {tuple(incidence.shape)}")
        mapped = self.linear(nodes)
        received = hypergraph_conv(mapped, incidence, self.edge_weight, normalization=self.normalization)
        biased = received if self.node_bias is None else received + self.node_bias
        return self.activation(biased).to(nodes.dtype)

    def extra_repr(self) -> str:
        options = f"num_edges={self.num_edges}, num_nodes={self.num_nodes}, normalization={self.normalization!r}"
        return f"{self.in_dim}, {self.out_dim}, {options}, activation={_written(self.activation)}"


def _written(activation: Callable[[Tensor], Tensor]) -> str:
    """Return the Python expression of an activation of torch, or the name of any other activation."""
    if isinstance(activation, nn.Module):
        return f"torch.nn.{activation}" if type(activation).__module__.startswith("torch.nn.") else repr(activation)
    return f"{getattr(activation, '__module__', None) or 'torch'}.{getattr(activation, '__name__', activation)}"


class CrossModalHypergraph(nn.Module):
    r"""Lets the semantic tokens of all modalities exchange information with similar tokens (eq. 14-16).

    $$H^{(l+1)} = \operatorname{HypergraphConv}_l\big(H^{(l)}\big) + H^{(l)}$$

    $H^{(0)}$ are the `tokens`, the first modality first: nodes of one hypergraph per sample, built once by
    [`similarity_incidence`][stmi_layers.incidence.similarity_incidence]. Each layer is a
    [`HypergraphConv`][stmi_layers.hypergraph.HypergraphConv] that learns a weight per hyperedge and a bias per node.
    `threshold` decides whether hyperedges join any tokens: check
    [`incidence_statistics`][stmi_layers.incidence.incidence_statistics] of `incidence(tokens)`.

    A missing modality takes no part: its tokens are in no hyperedge and come out unchanged. All tokens of a sample
    without any modality come out unchanged; refuse such samples when loading data, because a check here would make the
    host wait for the device.

    Differences from the paper: those of `HypergraphConv`.

    Differences from the research code:

    - Similarity is the cosine, because the meaning of a distance changes with the width and scale of the tokens;
      `similarity="euclidean"` compares distances.
    - The residual follows the activation (eq. 16), without a group norm. The group norm of the research code has one
      group over all nodes and channels of a sample, so that every token depends on all other tokens even without a
      common hyperedge. Most of the mixing in its CHI goes through this norm.

    Args:
        dim: width of the tokens.
        num_nodes: number of tokens of all modalities together.
        num_layers: number of convolutions.
        threshold: least cosine, or greatest distance, between a node and the node of a hyperedge.
        similarity: "cosine" or "euclidean".
        normalization: "row", "symmetric" or "none", as in [`hypergraph_conv`][stmi_layers.convolution.hypergraph_conv].
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when an option is unknown, a size is not positive or `threshold` is a negative distance. `forward`
            also raises ValueError for inputs of the wrong size.

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
        similarity: Similarity = "cosine",
        normalization: Normalization = "row",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_similarity(similarity, threshold)
        check_normalization(normalization)
        check_positive(dim=dim, num_nodes=num_nodes, num_layers=num_layers)
        self.dim, self.num_nodes, self.num_layers, self.threshold = dim, num_nodes, num_layers, threshold
        self.similarity: Similarity = similarity
        self.normalization: Normalization = normalization
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
        """Update the `tokens`; `present` is True for the modalities that a sample has, None for all."""
        incidence = self.incidence(tokens, present)
        # The incidence alone would not do, because 0 times the NaN of an absent modality is NaN.
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
        """Return the hypergraph of `forward`, between the tokens of all modalities."""
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
