"""Exact search in shards, one after the other, and the recall of other searches against the exact one."""

from collections.abc import Callable
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stmi_layers._checks import check_positive
from stmi_layers.kernels.ranking import sort_keys
from stmi_layers.search import nearest
from stmi_layers.training.shards import Shards

Found = tuple[Int[Tensor, "queries k"], Float[Tensor, "queries k"]]
# Returns rows and squared distances of the nearest entries of each query.
Search = Callable[[Float[Tensor, "queries dim"], int], Found]
SPARE = 16  # candidates beyond k, because the cosines of a first pass are rounded
CHUNK = 64  # queries at once


def exact_search(shards: Shards, name: str) -> Search:
    """Return an exact search of all shards that holds one shard in memory at a time.

    A first pass keeps the `k` + 16 candidates of largest cosine; `nearest` ranks these as it would rank all rows.
    """
    shards.refuse_unknown(name)

    def search(queries: Tensor, k: int) -> Found:
        check_positive(k=k)
        refuse_queries(queries, shards.record.widths[name])
        candidates = _candidates(shards, name, queries.float(), k + SPARE)
        found = [
            _rank(shards, name, *pair, k) for pair in zip(queries.split(CHUNK), candidates.split(CHUNK), strict=True)
        ]
        empty = torch.zeros(0, min(k, shards.starts[-1]))
        rows, distances = zip(*found, strict=True) if found else ((empty.long(),), (empty,))
        return torch.cat(rows), torch.cat(distances)

    return search


def _candidates(shards: Shards, name: str, queries: Tensor, keep: int) -> Tensor:
    """Find the rows of largest cosine of every query, ties by row: (queries keep), or fewer columns for fewer rows."""
    rows = torch.zeros(len(queries), 0, dtype=torch.int64)
    cosines = torch.zeros(len(queries), 0)
    for number, start in enumerate(shards.starts[:-1]):
        vectors = shards.vectors(number, name)
        best = [_largest(some @ vectors.T, keep) for some in queries.split(CHUNK)] if len(vectors) else []
        if best:
            values, entries = map(torch.cat, zip(*best, strict=True))
            cosines, rows = torch.cat([cosines, values], dim=1), torch.cat([rows, entries + start], dim=1)
        cosines, order = cosines.sort(dim=1, descending=True, stable=True)
        cosines, rows = cosines[:, :keep], rows.gather(1, order[:, :keep])
    return rows


def _largest(cosines: Tensor, keep: int) -> tuple[Tensor, Tensor]:
    """Return the largest values of every row and their columns, ties by column."""
    order = sort_keys(-cosines).topk(min(keep, cosines.shape[1]), largest=False).indices
    return cosines.gather(1, order), order


def _rank(shards: Shards, name: str, queries: Tensor, candidates: Tensor, k: int) -> Found:
    """Find the nearest rows among the candidates of all the queries."""
    rows = candidates.unique()
    entries, distances = nearest(queries, vectors_at(shards, name, rows), k)
    return rows[entries], distances


def vectors_at(shards: Shards, name: str, rows: Tensor) -> Tensor:
    """Return the descriptors at `rows`, which must ascend."""
    parts = [
        shards.vectors(number, name)[rows[(rows >= start) & (rows < stop)] - start]
        for number, (start, stop) in enumerate(pairwise(shards.starts))
        if bool(((rows >= start) & (rows < stop)).any())
    ]
    return torch.cat([torch.zeros(0, shards.record.widths[name]), *parts])


def refuse_queries(queries: Tensor, width: int) -> None:
    """Refuse queries of another width, and queries that are not finite, because faiss finds nothing for these."""
    if queries.shape[1] != width:
        raise ValueError(f"queries must have the width of the index, {width}; received {queries.shape[1]}")
    if not queries.isfinite().all():
        raise ValueError("queries must be finite; received NaN or infinity")


def measure_recall(shards: Shards, name: str, search: Search, queries: int, *, k: int = 10) -> float:
    """Measure the share of the `k` nearest rows that a search finds for rows of the index, themselves left out."""
    chosen = torch.linspace(0, shards.starts[-1] - 1, queries).long().unique()
    vectors = vectors_at(shards, name, chosen)
    k = min(k, shards.starts[-1] - 1)
    if k < 1:
        return 1.0
    truth, found = exact_search(shards, name)(vectors, k + 1)[0], search(vectors, k + 1)[0]
    shares = []
    for own, right, guessed in zip(chosen.tolist(), truth.tolist(), found.tolist(), strict=True):
        expected = [row for row in right if row != own][:k]
        shares.append(len({*expected} & {*guessed}) / k)
    return sum(shares) / len(shares)
