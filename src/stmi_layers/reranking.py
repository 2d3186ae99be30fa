r"""Re-ranking by k-reciprocal neighbours: two entries are close when they share their nearest neighbours.

Paper: Zhong, Zheng, Cao and Li, "Re-ranking person re-identification with k-reciprocal encoding", CVPR 2017,
<https://arxiv.org/abs/1701.08398>.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stmi_layers._ranking import Metric, Positives, average_scores, check_groups, check_ranks, score_rows
from stmi_layers._reciprocal import Reading, reciprocal_distances
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
    metric: Metric = "euclidean",
    reading: Reading = "paper",
    chunk_size: int = 64,
) -> Float[Tensor, "queries gallery"]:
    r"""Compute distances from shared k-reciprocal neighbours and from the features.

    $$d^*(p, g) = {(1 - \lambda)} \left(1 - \frac{\sum_j \min(V_{pj}, V_{gj})}{\sum_j \max(V_{pj}, V_{gj})}\right)
    + \lambda \, d(p, g)$$

    $N(p, k)$ is $p$ and its $k$ nearest neighbours among all queries and gallery entries. $R(p, k)$ holds the entries
    of $N(p, k)$ that have $p$ in their own $N(\cdot, k)$. $R^*(p)$ is the union of $R(p, k_1)$ and every
    $R(q, \lfloor k_1 / 2 \rfloor)$ with $q \in R(p, k_1)$ of which at least two thirds lie in $R(p, k_1)$. $V_{pj}$ is
    the mean of $e^{-d(i, j)} \, [j \in R^*(i)]$ over the $k_2$ entries $i$ nearest to $p$, including $p$. $d(p, j)$ is
    the squared distance of the features divided by the largest squared distance from $p$, so that the scale of the
    features does not matter.

    Queries are neighbours, too, as in published results: the distances of a query depend on the other queries in the
    call. Entries at equal distance are neighbours in the order of their index, queries first.

    **Differences from the authors' code**, which `reading="authors"` follows: the code divides the row
    $e^{-d(i, \cdot)} \, [\cdot \in R^*(i)]$ of every entry by its sum, rounds $k_1 / 2$ to the nearest whole number
    (halves to the even number), and joins $R(q, \cdot)$ only when more than two thirds of it lie in $R(p, k_1)$.

    Args:
        query: one representation per query.
        gallery: one representation per gallery entry.
        k1: number of nearest neighbours that may be reciprocal, at least 1.
        k2: number of nearest entries, the entry itself included, over which $V$ is averaged; 1 disables averaging.
        weight: $\lambda$, share of the feature distance, in [0, 1]; 1 gives the order of the features alone.
        metric: `"euclidean"` or `"cosine"`, which scales the features to unit length first.
        reading: `"paper"`, the formula above, or `"authors"`, which gives the numbers of the authors' code and of most
            published results.
        chunk_size: number of entries compared with all entries at once. It bounds the working memory, about
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
    return torch.cat(list(reciprocal_distances(query, gallery, k1, k2, weight, metric, chunk_size, reading)))


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
    metric: Metric = "euclidean",
    reading: Reading = "paper",
    chunk_size: int = 64,
) -> ReIDMetrics:
    """Score the ranking of `gallery` by the distances of `k_reciprocal_rerank`, without holding all distances at once.

    Args:
        query: one representation per query.
        gallery: one representation per gallery entry.
        query_ids: identity of each query.
        gallery_ids: identity of each gallery entry.
        query_groups: camera or scene of each query; None drops nothing.
        gallery_groups: camera or scene of each gallery entry; given together with `query_groups`.
        ranks: ranks of the cumulative matching characteristic, from 1 on.
        k1: as in `k_reciprocal_rerank`.
        k2: as in `k_reciprocal_rerank`.
        weight: as in `k_reciprocal_rerank`.
        metric: as in `k_reciprocal_rerank`.
        reading: as in `k_reciprocal_rerank`.
        chunk_size: as in `k_reciprocal_rerank`.

    Returns:
        The scores of [`reid_metrics`][stmi_layers.metrics.reid_metrics], for the new distances.

    Raises:
        ValueError: when no query has a positive, features are not finite, only one of `query_groups` and
            `gallery_groups` is given, or an option is out of range.

    Examples:
        >>> query, gallery = torch.tensor([[0.0], [6.0]]), torch.tensor([[1.0], [5.0]])
        >>> scores = reranked_metrics(query, gallery, torch.tensor([7, 8]), torch.tensor([7, 8]), k1=1, k2=1)
        >>> scores.mAP
        1.0
    """
    check_ranks(ranks)
    check_groups(query_groups, gallery_groups)
    positives, first = Positives(query_ids, gallery_ids, query_groups, gallery_groups), 0
    scores = []
    for distance in reciprocal_distances(query, gallery, k1, k2, weight, metric, chunk_size, reading):
        rows = torch.arange(first, first + len(distance), device=distance.device)
        scores.append(score_rows(distance, *positives.of(rows)))
        first += len(distance)
    return ReIDMetrics(**average_scores(torch.cat(scores, dim=1), ranks))
