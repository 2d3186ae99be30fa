"""Ranking of a gallery by distance: the checks, features and scores that metrics, re-ranking and search share."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from stmi_layers._checks import check_choice
from stmi_layers.kernels.ranking import positive_ranks

Metric = Literal["euclidean", "cosine"]
METRICS = get_args(Metric)  # torch 2.6 cannot trace get_args


class Positives:
    """Gallery entries with the identity of each query, and a mask of the entries that count as positives."""

    def __init__(
        self,
        query_ids: Tensor,
        gallery_ids: Tensor,
        query_groups: Tensor | None,
        gallery_groups: Tensor | None,
    ) -> None:
        self.query_groups, self.gallery_groups = query_groups, gallery_groups
        self.by_identity = gallery_ids.argsort(stable=True)
        sorted_ids, query_ids = gallery_ids[self.by_identity].long(), query_ids.long().contiguous()
        self.start = torch.searchsorted(sorted_ids, query_ids)
        self.stop = torch.searchsorted(sorted_ids, query_ids, right=True)

    def chunks(self, chunk_size: int) -> list[Tensor]:
        """Return chunks of the queries whose identity is in the gallery, sorted by their number of entries."""
        size, order = (self.stop - self.start).sort()
        return [rows for rows in order[size > 0].split(chunk_size) if len(rows)]

    def of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return gallery entries (rows entries), padded with the first entry, and a mask of the positives."""
        start, stop = self.start[rows, None], self.stop[rows, None]
        slot = start + torch.arange(max(1, int((stop - start).max())), device=rows.device)
        positive = slot < stop
        entry = self.by_identity[torch.where(positive, slot, start.clamp(max=len(self.by_identity) - 1))]
        if self.query_groups is not None and self.gallery_groups is not None:
            positive = positive & (self.query_groups[rows, None] != self.gallery_groups[entry])
        return entry, positive


def score_rows(distance: Tensor, entry: Tensor, positive: Tensor) -> Tensor:
    """Return average precision, rank of the first positive and inverse negative penalty of each query, (3 queries).

    Average precision is NaN without positives. Entries of the query's identity that are no positives are left out of
    the ranking: the rule that drops a query's own group.
    """
    rank, count = positive_ranks(distance, entry, positive), positive.sum(dim=1)
    hits = torch.arange(1, rank.shape[1] + 1, device=rank.device)
    last = rank.gather(1, (count - 1).clamp(min=0)[:, None])[:, 0]
    return torch.stack([(hits / rank).sum(dim=1) / count, rank[:, 0], count / last])


def average_scores(scores: Tensor, ranks: Sequence[int]) -> dict[str, Any]:
    """Average `scores` (3 queries) over the queries that have a positive, and return the fields of `ReIDMetrics`."""
    average_precision, first, inverse_penalty = scores
    evaluated = ~average_precision.isnan()
    num_queries, num_evaluated = len(evaluated), int(evaluated.sum())
    if num_evaluated == 0:
        raise ValueError(
            f"no query has a positive in the gallery: received {num_queries} queries, none with an entry of "
            "its identity in another group; check query_ids, gallery_ids and the groups"
        )
    return {
        "mAP": average_precision[evaluated].mean().item(),
        "cmc": {rank: (first[evaluated] <= rank).double().mean().item() for rank in ranks},
        "mINP": inverse_penalty[evaluated].mean().item(),
        "average_precision": average_precision,
        "num_queries": num_queries,
        "num_skipped": num_queries - num_evaluated,
    }


def check_ranks(ranks: Sequence[int]) -> None:
    """Refuse ranks below 1."""
    if min(ranks, default=1) < 1:
        raise ValueError(f"ranks must be at least 1; received {tuple(ranks)}")


def check_groups(query_groups: Tensor | None, gallery_groups: Tensor | None) -> None:
    """Refuse groups of queries without groups of gallery entries, and the reverse."""
    if (query_groups is None) != (gallery_groups is None):
        received = "gallery_groups" if query_groups is None else "query_groups"
        raise ValueError(f"query_groups and gallery_groups must be given together; received only {received}")


def comparable(query: Tensor, gallery: Tensor, metric: str) -> tuple[Tensor, Tensor]:
    """Return both sets of features without gradient, in at least float32, with unit length for the cosine.

    Rows that are not finite raise ValueError.
    """
    check_choice("metric", metric, METRICS)
    dtype = torch.promote_types(torch.promote_types(query.dtype, gallery.dtype), torch.float32)
    query, gallery = query.detach().to(dtype), gallery.detach().to(dtype)
    for name, features in (("query", query), ("gallery", gallery)):
        finite = torch.linalg.vector_norm(features, dim=1).isfinite()
        if not finite.all():
            broken = (~finite).nonzero().flatten()
            rows = f"{len(broken)} of {len(features)} rows are not (first: row {int(broken[0])})"
            raise ValueError(f"{name} must hold finite features of finite length; {rows}")
    return (F.normalize(query), F.normalize(gallery)) if metric == "cosine" else (query, gallery)


def centre_of(features: Tensor) -> Tensor:
    """Return a point amid the rows, which is subtracted so that a common offset costs no digits of the distances.

    The point is a multiple of a power of two near the spread of the rows. Features on a grid, such as whole numbers,
    therefore stay on an equally coarse grid, and equal distances stay equal.
    """
    if len(features) == 0:
        return features.new_zeros(features.shape[1])
    mean, spread = features.mean(dim=0), (features.amax(dim=0) - features.amin(dim=0)).amax()
    exponent = torch.maximum(spread.frexp().exponent - 2, mean.abs().amax().frexp().exponent - 23)
    step = torch.ldexp(torch.ones_like(spread), exponent)
    return (mean / step).round() * step


def squared_norms(features: Tensor) -> Tensor:
    """Return the squared length of every row, without a copy of all rows at once."""
    return torch.cat([rows.square().sum(dim=1) for rows in features.split(1024)]) if len(features) else features[:, 0]
