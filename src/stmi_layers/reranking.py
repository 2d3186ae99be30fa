r"""Re-ranking by k-reciprocal neighbours: two entries are alike when the same others are near to both of them.

Zhong, Zheng, Cao and Li, "Re-ranking person re-identification with k-reciprocal encoding", CVPR 2017
(<https://arxiv.org/abs/1701.08398>).
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stmi_layers._reciprocal import reciprocal_distances
from stmi_layers._typing import typed
from stmi_layers.metrics import ReIDMetrics


@typed
def k_reciprocal_rerank(
    query: Float[Tensor, "queries dim"],
    gallery: Float[Tensor, "gallery dim"],
    *,
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    metric: str = "euclidean",
    chunk_size: int = 64,
) -> Float[Tensor, "queries gallery"]:
    r"""Distances that count shared k-reciprocal neighbours besides the features.

    $$d^*(p, g) = (1 - \lambda) \left(1 - \frac{\sum_j \min(V_{pj}, V_{gj})}{\sum_j \max(V_{pj}, V_{gj})}\right)
    + \lambda \, d(p, g)$$

    $N(p, k)$ is $p$ and its $k$ nearest others, among all queries and gallery entries. Of these, $R(p, k)$ are the
    ones that have $p$ in their own $N(\cdot, k)$. $R^*(p)$ joins to $R(p, k_1)$ every $R(q, \lfloor k_1 / 2 \rfloor)$
    of a $q \in R(p, k_1)$ of which at least two thirds lie in $R(p, k_1)$. $V_{pj}$ is the mean of
    $e^{-d(i, j)} \, [j \in R^*(i)]$ over the $k_2$ entries $i$ nearest to $p$, itself included. $d(p, j)$ is the
    squared distance of the features over the largest one from $p$, so that the scale of the features does not matter.

    Neighbours are looked for among the queries, too, as in published results: the distances of a query depend on which
    other queries there are. Entries at equal distance are neighbours in the order of their index, queries first.

    **Difference from the authors' code**: it divides every $V_p$ by its sum, which the paper does not.

    Args:
        query: one representation per query.
        gallery: one representation per gallery entry.
        k1: neighbours of an entry that may be reciprocal, at least 1.
        k2: entries over which $V$ is averaged, at least 1, which is itself alone.
        weight: $\lambda$, share of the distance of the features, in [0, 1]; 1 keeps their order.
        metric: `"euclidean"` or `"cosine"`, which scales the features to unit length first.
        chunk_size: entries compared with all others at once. It bounds the working memory, about
            `30 * chunk_size` bytes per entry, and does not change the result.

    Returns:
        Distances in [0, 1], in at least float32.

    Raises:
        ValueError: when features are not finite or an option is out of range.

    Examples:
        >>> query, gallery = torch.tensor([[0.0]]), torch.tensor([[1.0], [5.0], [6.0]])
        >>> distances = k_reciprocal_rerank(query, gallery, k1=1, k2=1, weight=0.0)
        >>> distances.round(decimals=1)  # 0 and 1 are each other's nearest; so are 5 and 6
        tensor([[0., 1., 1.]])
    """
    return torch.cat(list(reciprocal_distances(query, gallery, k1, k2, weight, metric, chunk_size)))


@typed
def reranked_metrics(
    query: Float[Tensor, "queries dim"],
    gallery: Float[Tensor, "gallery dim"],
    query_ids: Int[Tensor, " queries"],
    gallery_ids: Int[Tensor, " gallery"],
    *,
    query_groups: Int[Tensor, " queries"] | None = None,
    gallery_groups: Int[Tensor, " gallery"] | None = None,
    ranks: Sequence[int] = (1, 5, 10),
    k1: int = 20,
    k2: int = 6,
    weight: float = 0.3,
    metric: str = "euclidean",
    chunk_size: int = 64,
) -> ReIDMetrics:
    """Score the ranking of `gallery` by the distances of `k_reciprocal_rerank`, without ever holding all of them.

    Args:
        query: one representation per query.
        gallery: one representation per gallery entry.
        query_ids: identity of each query.
        gallery_ids: identity of each gallery entry.
        query_groups: camera or scene of each query; None drops nothing.
        gallery_groups: camera or scene of each gallery entry; given together with `query_groups`.
        ranks: of the cumulative matching characteristic, from 1 on.
        k1: as in `k_reciprocal_rerank`.
        k2: as in `k_reciprocal_rerank`.
        weight: as in `k_reciprocal_rerank`.
        metric: as in `k_reciprocal_rerank`.
        chunk_size: as in `k_reciprocal_rerank`.

    Returns:
        What [`reid_metrics`][stmi_layers.metrics.reid_metrics] returns for the original distances.

    Raises:
        ValueError: when no query has a positive, features are not finite, only one of the groups is given, or an
            option is out of range.

    Examples:
        >>> query, gallery = torch.tensor([[0.0], [6.0]]), torch.tensor([[1.0], [5.0]])
        >>> scores = reranked_metrics(query, gallery, torch.tensor([7, 8]), torch.tensor([7, 8]), k1=1, k2=1)
        >>> scores.mAP
        1.0
    """
    if min(ranks, default=1) < 1:
        raise ValueError(f"ranks must count from 1; received {tuple(ranks)}")
    if (query_groups is None) != (gallery_groups is None):
        received = "gallery_groups" if query_groups is None else "query_groups"
        raise ValueError(f"query_groups and gallery_groups must be given together; received only {received}")
    scores, first = [], 0
    for distance in reciprocal_distances(query, gallery, k1, k2, weight, metric, chunk_size):
        rows = slice(first, first + len(distance))
        match = query_ids[rows, None] == gallery_ids
        if query_groups is not None and gallery_groups is not None:
            dropped = match & (query_groups[rows, None] == gallery_groups)
            match, distance = match & ~dropped, distance.masked_fill(dropped, math.inf)
        scores.append(_score(distance, match))
        first = rows.stop
    return _average(torch.cat(scores, dim=1), ranks)


def _score(distance: Tensor, match: Tensor) -> Tensor:
    """Average precision, rank of the first match and inverse negative penalty of every row; NaN without a match."""
    hit = match.gather(1, distance.argsort(dim=1, stable=True)).double()
    rank = torch.arange(1, hit.shape[1] + 1, device=hit.device, dtype=torch.float64)
    count = hit.sum(dim=1)
    precision = (hit.cumsum(dim=1) / rank * hit).sum(dim=1) / count
    last = (hit * rank).amax(dim=1)
    earliest = rank.where(hit > 0, math.inf).amin(dim=1)
    return torch.stack([precision, earliest, count / last])


def _average(scores: Tensor, ranks: Sequence[int]) -> ReIDMetrics:
    precision, earliest, inverse_penalty = scores
    evaluated = ~precision.isnan()
    if not evaluated.any():
        raise ValueError(
            f"no query has a positive in the gallery: received {len(precision)} queries, none with an entry of its "
            "identity in another group; check query_ids, gallery_ids and the groups"
        )
    return ReIDMetrics(
        mAP=precision[evaluated].mean().item(),
        cmc={rank: (earliest[evaluated] <= rank).double().mean().item() for rank in ranks},
        mINP=inverse_penalty[evaluated].mean().item(),
        average_precision=precision,
        num_queries=len(precision),
        num_skipped=len(precision) - int(evaluated.sum()),
    )
