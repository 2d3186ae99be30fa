r"""Convolution on a hypergraph: the features of nodes, carried to hyperedges and back.

The sum of eq. 15 in three normalisations.
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stmi_layers._checks import check_choice
from stmi_layers._precision import without_autocast
from stmi_layers._typing import typed

Normalization = Literal["row", "symmetric", "none"]
NORMALIZATIONS = get_args(Normalization)  # torch 2.6 cannot trace get_args


@typed
def hypergraph_conv(
    nodes: Float[Tensor, "batch nodes dim"],
    incidence: Bool[Tensor, "batch nodes edges"] | Float[Tensor, "batch nodes edges"],
    edge_weight: Float[Tensor, " edges"] | None = None,
    *,
    normalization: Normalization = "row",
) -> Float[Tensor, "batch nodes dim"]:
    r"""Carry features from nodes to hyperedges and back: the sum of eq. 15.

    $$\begin{aligned}
    \text{row:} &\quad D_v^{-1} H W D_e^{-1} H^\top X \\
    \text{none:} &\quad H W D_e^{-1} H^\top X \\
    \text{symmetric:} &\quad D_v^{-1/2} H W D_e^{-1} H^\top D_v^{-1/2} X
    \end{aligned}$$

    $X$ are the `nodes`, $H$ the `incidence` and $W$ the diagonal matrix of `edge_weight`; $D_v$ and $D_e$ hold the row
    and column sums of $H$. $h_e$ is the mean of the nodes in hyperedge $e$. With "row" a node receives the mean of
    $w_e h_e$ over its hyperedges; with "none" it receives their sum, which is eq. 15 to the letter. "symmetric" follows
    Bai et al., except that $D_v$ does not contain $W$, because learned weights may sum to zero. The result is linear in
    `nodes` and in `edge_weight`, and computed in at least float32.

    Args:
        nodes: features of the nodes.
        incidence: which nodes are in which hyperedges; if not boolean, memberships of at least 0 (not checked).
        edge_weight: $w_e$, any real number per hyperedge; None is 1.
        normalization: "row", "symmetric" or "none".

    Returns:
        New features, in the dtype of `nodes`; 0 for a node in no hyperedge. With "row" and weight 1, every node in a
        hyperedge gets a convex combination of `nodes`.

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
    check_normalization(normalization)
    membership = incidence.to(torch.promote_types(nodes.dtype, torch.float32))
    node_degree, edge_degree = membership.sum(dim=2), membership.sum(dim=1)
    edge_scale = _inverse(edge_degree) if edge_weight is None else _inverse(edge_degree) * edge_weight
    with without_autocast(nodes):
        # The operator (nodes nodes) comes first: cheaper than two steps while there are fewer nodes than features.
        operator = (membership * edge_scale[:, None, :]) @ membership.transpose(1, 2)
        if normalization == "row":
            operator = operator * _inverse(node_degree)[:, :, None]
        elif normalization == "symmetric":
            scale = _inverse(node_degree).sqrt()
            operator = operator * scale[:, :, None] * scale[:, None, :]
        return (operator @ nodes.to(operator.dtype)).to(nodes.dtype)


def _inverse(degree: Tensor) -> Tensor:
    """Return 1 / degree, and 0 with a finite gradient for a degree of 0."""
    occupied = degree > 0
    return torch.where(occupied, 1 / torch.where(occupied, degree, 1.0), 0.0)


def check_normalization(normalization: str) -> None:
    """Refuse an unknown `normalization`."""
    check_choice("normalization", normalization, NORMALIZATIONS)
