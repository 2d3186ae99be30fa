"""Distances by shared k-reciprocal neighbours, as defined in `reranking.py`, in bounded memory.

An entry has a few dozen neighbours among hundreds of thousands, so its encoding V is kept as a sparse row, and only
entries that have a neighbour in common are compared.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from stmi_layers._checks import check_choice, check_positive, check_probability
from stmi_layers._precision import without_autocast
from stmi_layers._ranking import centre_of, comparable, squared_norms
from stmi_layers.kernels.ranking import smallest

Reading = Literal["paper", "authors"]
READINGS = get_args(Reading)  # torch 2.6 cannot trace get_args


class _Rows(NamedTuple):
    """Sparse matrix: row i has the columns and values from start[i] to start[i + 1]."""

    start: Tensor
    column: Tensor
    value: Tensor


# Pairs of common neighbours processed at once, about 40 MB.
_PAIRS = 1 << 20


def reciprocal_distances(
    query: Tensor,
    gallery: Tensor,
    k1: int,
    k2: int,
    weight: float,
    metric: str,
    chunk_size: int,
    reading: str = "paper",
) -> Iterator[Tensor]:
    """Yield the distances of `k_reciprocal_rerank`, for `chunk_size` queries at a time."""
    check_positive(k1=k1, k2=k2, chunk_size=chunk_size)
    check_probability("weight", weight)
    check_choice("reading", reading, READINGS)
    features = torch.cat(comparable(query, gallery, metric))
    if metric == "euclidean":
        features -= centre_of(features)
    norms = squared_norms(features)
    near, farthest = _nearest(features, norms, max(k1, k2 - 1), chunk_size)
    members = _encode(features, near[:, : k1 + 1], k1, farthest, reading == "authors", chunk_size)
    encoding = _mean_rows(members, near[:, :k2], chunk_size)
    of_gallery = _transpose(encoding, len(query))
    total = torch.segment_reduce(encoding.value, "sum", lengths=encoding.start.diff())
    for rows in torch.arange(len(query), device=query.device).split(chunk_size):
        shared = _shared(encoding, of_gallery, rows, len(gallery))
        jaccard = 1 - shared / (total[rows, None] + total[len(query) :] - shared)
        distance = _squared_distance(features[rows], features[len(query) :], norms[len(query) :]) / farthest[rows, None]
        yield ((1 - weight) * jaccard + weight * distance).clamp_(0, 1)


def _squared_distance(rows: Tensor, columns: Tensor, norms: Tensor) -> Tensor:
    """Return squared distances (rows columns); `norms` are the squared lengths of the columns."""
    with without_autocast(rows):
        products = torch.addmm(norms, rows, columns.T, alpha=-2)
    return products.add_(rows.square().sum(dim=1, keepdim=True)).clamp_(min=0)


def _nearest(features: Tensor, norms: Tensor, k: int, chunk_size: int) -> tuple[Tensor, Tensor]:
    """Return each entry with its `k` nearest neighbours, and its largest squared distance (1 where all are equal)."""
    entries, k = torch.arange(len(features), device=features.device), min(k, len(features) - 1)
    near = entries[:, None].repeat(1, 1 + k)  # the entry itself goes first, before others at distance zero
    radius = features.new_empty(len(features))
    for rows in entries.split(chunk_size):
        own = features[rows].square().sum(dim=1, keepdim=True)
        with without_autocast(features):
            rough = torch.addmm(norms, features[rows], features.T, alpha=-2)
        # `rough` is the squared distance less the entry's own squared length, which is added only where it matters.
        radius[rows] = (rough.amax(dim=1, keepdim=True) + own).clamp_(min=0)[:, 0]
        if k:
            rough.scatter_(1, rows[:, None], torch.inf)
            near[rows, 1:] = _smallest(rough, own, k, entries)
    return near, radius.where(radius > 0, 1.0)


def _smallest(rough: Tensor, own: Tensor, count: int, entries: Tensor) -> Tensor:
    """Return the columns of the `count` smallest numbers of every row; the lower column comes first in a tie."""
    found = smallest(rough, count, lambda part: (part + own).clamp_(min=0))
    if found is None:
        index_bits = (1 << (len(entries) - 1).bit_length()) - 1
        # The bits of a distance sort as the distance does, the index in the last bits breaks ties, + 0.0 removes -0.0.
        keys = rough.add_(own).clamp_(min=0).double().add_(0.0).view(torch.int64)
        keys = keys.bitwise_and_(~index_bits).bitwise_or_(entries)
        return keys.topk(count, dim=1, largest=False).values & index_bits
    value, place = found
    return place.gather(1, value.sort(dim=1, stable=True).indices)


def _mutual(near: Tensor, chunk_size: int) -> Tensor:
    """Tell, for every neighbour of an entry, whether the entry is a neighbour of that neighbour in turn."""
    entries = torch.arange(len(near), device=near.device)
    return torch.cat([(near[near[rows]] == rows[:, None, None]).any(dim=2) for rows in entries.split(chunk_size)])


def _encode(features: Tensor, near: Tensor, k1: int, farthest: Tensor, authors: bool, chunk_size: int) -> _Rows:
    """Return the members of R* of every entry, and the closeness of each member to the entry."""
    half = round(k1 / 2) if authors else k1 // 2
    none = len(features)
    mutual, mutual_half = _mutual(near, chunk_size), _mutual(near[:, : half + 1], chunk_size)
    counts, columns, values = [], [], []
    for rows in torch.arange(len(near), device=near.device).split(chunk_size):
        core = near[rows].masked_fill(~mutual[rows], none)
        joined = near[near[rows], : half + 1]
        known = mutual_half[near[rows]] & (core < none)[..., None]
        among = (joined.int()[..., None] == core.int()[:, None, None, :]).any(dim=3)  # int: half the memory traffic
        common = known & among
        excess = 3 * common.sum(dim=2) - 2 * known.sum(dim=2)
        known &= (excess > 0 if authors else excess >= 0)[..., None]
        members = torch.cat([core, joined.masked_fill(~known, none).flatten(1)], dim=1).sort(dim=1).values
        first = members.diff(dim=1, prepend=members.new_full((len(rows), 1), -1)) > 0
        first &= members < none
        owner, column = rows.repeat_interleave(first.sum(dim=1)), members[first]
        distance = (features[owner] - features[column]).square().sum(dim=1) / farthest[owner]
        counts.append(first.sum(dim=1))
        columns.append(column)
        value = torch.exp(-distance)
        if authors:
            counted = first.sum(dim=1)
            value = value / torch.segment_reduce(value, "sum", lengths=counted).repeat_interleave(counted)
        values.append(value)
    return _Rows(_starts(torch.cat(counts)), torch.cat(columns), torch.cat(values))


def _mean_rows(encoding: _Rows, near: Tensor, chunk_size: int) -> _Rows:
    """Average, for every entry, the rows of its nearest entries."""
    entries, size = torch.arange(len(near), device=near.device), near.shape[1]
    counts, columns, values = [], [], []
    for rows in entries.split(chunk_size):
        owner, slot = _slots(encoding.start, near[rows].flatten())
        key, inverse = torch.unique(owner // size * len(near) + encoding.column[slot], return_inverse=True)
        summed = encoding.value.new_zeros(len(key)).index_add_(0, inverse, encoding.value[slot])
        counts.append(torch.bincount(key // len(near), minlength=len(rows)))
        columns.append(key % len(near))
        values.append(summed / size)
    return _Rows(_starts(torch.cat(counts)), torch.cat(columns), torch.cat(values))


def _transpose(encoding: _Rows, first: int) -> _Rows:
    """Return the transpose of the rows from `first` on; row `first` becomes column 0."""
    entries = torch.arange(len(encoding.start) - 1, device=encoding.start.device)
    begin = int(encoding.start[first])
    column, order = encoding.column[begin:].sort(stable=True)
    row = entries.repeat_interleave(encoding.start.diff())[begin:][order] - first
    return _Rows(_starts(torch.bincount(column, minlength=len(entries))), row, encoding.value[begin:][order])


def _shared(encoding: _Rows, of_gallery: _Rows, rows: Tensor, num_gallery: int) -> Tensor:
    """Sum the smaller values of every query and gallery entry, over the neighbours that both have in common."""
    shared = encoding.value.new_zeros(len(rows) * num_gallery)
    owner, slot = _slots(encoding.start, rows)
    pairs = of_gallery.start.diff()[encoding.column[slot]].cumsum(dim=0)
    sizes = torch.unique_consecutive(pairs // _PAIRS, return_counts=True)[1].tolist()
    for owners, slots in zip(owner.split(sizes), slot.split(sizes), strict=True):
        which, entry = _slots(of_gallery.start, encoding.column[slots])
        least = torch.minimum(encoding.value[slots][which], of_gallery.value[entry])
        shared.index_add_(0, owners[which] * num_gallery + of_gallery.column[entry], least)
    return shared.view(len(rows), num_gallery)


def _starts(counts: Tensor) -> Tensor:
    return F.pad(counts.cumsum(dim=0), (1, 0))


def _slots(start: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return, for every value of the given `rows`, the index into `rows` of its row, and its own position."""
    counts = start[rows + 1] - start[rows]
    owner = torch.arange(len(rows), device=rows.device).repeat_interleave(counts)
    offset = start[rows] - (counts.cumsum(dim=0) - counts)
    return owner, torch.arange(len(owner), device=rows.device) + offset[owner]
