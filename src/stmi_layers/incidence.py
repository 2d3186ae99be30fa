r"""Hyperedges between similar tokens: the hypergraph of CHI and its statistics.

Hyperedges join similar tokens within and across modalities (paper, between eq. 14 and 15).
Paper: "STMI: Segmentation-Guided Token Modulation with Cross-Modal Hypergraph Interaction for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2603.00695>.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from stmi_layers._checks import check_choice
from stmi_layers._diagonal import on_diagonal
from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed

Similarity = Literal["cosine", "euclidean"]
SIMILARITIES = get_args(Similarity)  # torch 2.6 cannot trace get_args


@typed
def similarity_incidence(
    nodes: Float[Tensor, "batch nodes dim"],
    threshold: float,
    *,
    similarity: Similarity = "cosine",
    present: Bool[Tensor, "batch nodes"] | None = None,
) -> Bool[Tensor, "batch nodes edges"]:
    r"""Join every node with similar nodes: one hyperedge per node.

    $$\text{incidence}_{ij} = {\Big[\, i = j \ \text{ or }\
    \frac{x_i^\top x_j}{\lVert x_i \rVert\, \lVert x_j \rVert} \ge \text{threshold} \,\Big]}$$

    $x$ are the `nodes`; with `similarity="euclidean"` the condition is $\lVert x_i - x_j \rVert \le$ `threshold`. Both
    are computed in at least float32. A zero vector has cosine 0 with every other node. The ONNX exporter supports only
    the cosine, because it has no `torch.cdist`.

    Differences from the research code: the research code joins nodes at a distance below the threshold; here a distance
    equal to the threshold joins, too, and the default is the cosine.

    Args:
        nodes: features to compare.
        threshold: least cosine, or greatest distance in the units of `nodes`. A cosine of -1 or less joins all nodes; a
            cosine above 1 joins no two nodes.
        similarity: "cosine" or "euclidean".
        present: True for nodes that take part; None for all.

    Returns:
        True where node $i$ is in hyperedge $j$. Every present node is in its own hyperedge. An absent node is in no
        hyperedge, and its own hyperedge is empty. The result carries no gradient.

    Raises:
        ValueError: when `similarity` is unknown, or `threshold` is a negative distance or not a number.

    Examples:
        >>> nodes = torch.tensor([[[1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])
        >>> similarity_incidence(nodes, threshold=0.5)
        tensor([[[ True,  True, False],
                 [ True,  True, False],
                 [False, False,  True]]])
    """
    check_similarity(similarity, threshold)
    nodes = at_least_float32(nodes.detach())
    if similarity == "cosine":
        unit = F.normalize(nodes, dim=-1)
        with without_autocast(nodes):
            similar = (unit @ unit.transpose(1, 2)).clamp(-1, 1) >= threshold
    else:
        # With matrix products, the default from 26 nodes on, the distance of close nodes would lose its digits.
        similar = torch.cdist(nodes, nodes, compute_mode="donot_use_mm_for_euclid_dist") <= threshold
    incidence = similar | on_diagonal(nodes.shape[1], nodes.device)
    return incidence if present is None else incidence & present[:, :, None] & present[:, None, :]


@typed
def incidence_statistics(
    incidence: Bool[Tensor, "batch nodes edges"], num_modalities: int
) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"], Float[Tensor, " batch"]]:
    r"""Measure how much a hypergraph joins; a bad threshold joins no nodes, or all of them.

    Args:
        incidence: True where a node is in a hyperedge; nodes of the first modality first, equally many per modality.
        num_modalities: number of modalities; divides the number of nodes.

    Returns:
        Three numbers per sample. The first is the mean number of nodes in a hyperedge. The second is the share of
        isolated nodes, which share no hyperedge with another node. The third is the share of hyperedges that reach
        several modalities. Nodes in no hyperedge and empty hyperedges do not count; 0 when nothing counts.

    Raises:
        ValueError: when `num_modalities` does not divide the number of nodes.

    Examples:
        >>> incidence = torch.tensor([[[True, False], [False, True], [False, True], [False, False]]])
        >>> incidence_statistics(incidence, num_modalities=2)  # hyperedges {0} and {1, 2}; modalities {0, 1} and {2, 3}
        (tensor([1.5000]), tensor([0.3333]), tensor([0.5000]))
    """
    nodes = incidence.shape[1]
    if num_modalities < 1 or nodes % num_modalities:
        raise ValueError(f"num_modalities must divide the number of nodes, {nodes}; received {num_modalities}")
    edge_size, member = incidence.sum(dim=1), incidence.any(dim=2)
    shared = (incidence & (edge_size > 1)[:, None, :]).any(dim=2)
    reached = rearrange(incidence, "batch (modalities n) edges -> batch modalities n edges", modalities=num_modalities)
    cross_modal = reached.any(dim=2).sum(dim=1) > 1
    edge_count = (edge_size > 0).sum(dim=1).clamp(min=1)
    node_count = member.sum(dim=1).clamp(min=1)
    isolated = (member & ~shared).sum(dim=1) / node_count
    return edge_size.sum(dim=1) / edge_count, isolated, cross_modal.sum(dim=1) / edge_count


def check_similarity(similarity: str, threshold: float) -> None:
    """Refuse an unknown `similarity`, and a `threshold` outside its range.

    Raises:
        ValueError: when `similarity` is unknown, or `threshold` is a negative distance or not a number.
    """
    check_choice("similarity", similarity, SIMILARITIES)
    least, rule = (0.0, "at least 0") if similarity == "euclidean" else (-math.inf, "a number")
    if not threshold >= least:
        raise ValueError(f"threshold must be {rule} with {similarity} similarity; received {threshold}")
