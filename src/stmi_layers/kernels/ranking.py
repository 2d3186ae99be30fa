"""Ranks of the positives of each query, without sorting its gallery.

The rank of a positive is 1 plus the number of positives and negatives before it. `ranks_by_counting` is the readable
reference of `ranks_by_selection`; both order by distance, then by index in the gallery, and agree exactly.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

BEHIND_ALL = torch.iinfo(torch.int64).max
ROWS_COUNTED_AT_ONCE = 32  # keys and comparisons of so few rows stay in the cache


def positive_ranks(distance: Tensor, entry: Tensor, positive: Tensor) -> Tensor:
    """Return the ranks of all positives, best first, infinite after the last positive: (queries positives), float64.

    Args:
        distance: distances of every query to the gallery, (queries gallery).
        entry: gallery entries with the identity of the query, (queries entries); a row may repeat its first entry.
        positive: True for the entries that are positives; all other entries are left out of the ranking.
    """
    queries, gallery = distance.shape
    columns = max(1, int(positive.sum(dim=1).max()))
    worst = distance.gather(1, entry).masked_fill_(~positive, -math.inf).amax(dim=1, keepdim=True)
    near = (distance <= worst).scatter_(1, entry, False)
    # Selecting a negative costs about as much as comparing it with 100 positives.
    worthwhile = 100 * int(near.count_nonzero()) < columns * near.numel()
    if worthwhile and distance.dtype == torch.float32 and queries * gallery < 2**31:
        return ranks_by_selection(distance, near, entry, positive, columns)
    blocks = range(0, queries, ROWS_COUNTED_AT_ONCE)
    rows = [slice(first, first + ROWS_COUNTED_AT_ONCE) for first in blocks]
    return torch.cat([ranks_by_counting(distance[at], entry[at], positive[at], columns) for at in rows])


def ranks_by_counting(distance: Tensor, entry: Tensor, positive: Tensor, columns: int) -> Tensor:
    """Compute ranks by comparing every positive with all negatives."""
    keys = sort_keys(distance)
    wanted = keys.gather(1, entry).masked_fill_(~positive, BEHIND_ALL).sort(dim=1).values[:, :columns]
    negatives = keys.scatter_(1, entry, BEHIND_ALL)
    rank = torch.arange(1, columns + 1, device=keys.device).repeat(len(keys), 1)
    nearer = torch.empty_like(negatives)  # 0 or 1 in the dtype of the keys: twice as fast as booleans
    for column, key in enumerate(wanted.unbind(dim=1)):
        torch.lt(negatives, key[:, None], out=nearer)
        rank[:, column] += nearer.sum(dim=1)
    return rank.double().masked_fill_(wanted == BEHIND_ALL, math.inf)


def ranks_by_selection(distance: Tensor, near: Tensor, entry: Tensor, positive: Tensor, columns: int) -> Tensor:
    """Compute ranks from the negatives that are `near` alone: not farther than the worst positive of their query.

    Query, distance and index form one number, from high bits to low bits. In these numbers the positives of all queries
    are one sorted list, and a binary search finds the first positive after each negative.
    """
    queries, gallery = distance.shape
    # Transposed, because that is the layout of the distances in memory.
    place = near.T.reshape(-1).nonzero().flatten()
    row = place.remainder(queries)
    nearest = distance.T.reshape(-1).index_select(0, place)
    negatives = _joint_keys(nearest, row, place.div_(queries, rounding_mode="floor"), gallery)
    of_query, slot = positive.nonzero().unbind(dim=1)
    column = entry[of_query, slot]
    positives = _joint_keys(distance[of_query, column], of_query, column, gallery).sort().values
    before = torch.searchsorted(positives, negatives)
    in_front = torch.bincount(before, minlength=len(positives) + 1)[:-1].cumsum(dim=0)
    in_row = torch.bincount(row, minlength=queries)
    # `in_front` counts the negatives of all earlier queries, too.
    earlier = in_row.cumsum(dim=0) - in_row
    nth = torch.arange(columns, device=distance.device).expand(queries, -1)
    there = nth < positive.sum(dim=1)[:, None]
    rank = distance.new_full(there.shape, math.inf, dtype=torch.float64)
    rank[there] = (in_front + (nth + 1 - earlier[:, None])[there]).double()
    return rank


def smallest(
    distance: Tensor, count: int, monotone: Callable[[Tensor], Tensor] = lambda distance: distance
) -> tuple[Tensor, Tensor] | None:
    """Find the `count` smallest numbers of every row in little more than one pass over the numbers.

    Each row is split into groups. The `count` smallest numbers lie in the `count` groups with the smallest minima.

    Args:
        distance: numbers (rows columns), row by row in memory.
        count: how many numbers to find, from 1 to the number of columns.
        monotone: function applied to numbers before comparison; it may make numbers equal, but not swap their order.

    Returns:
        The numbers after `monotone` and their columns, in ascending order of columns; None when, in any row, a number
        that is left out equals the largest number that was found.
    """
    columns = distance.shape[1]
    size = max(1, math.isqrt(columns // count))
    groups = columns // size
    minima = distance[:, : size * groups].unflatten(1, (size, groups)).amin(dim=1)
    nearest = minima.topk(min(count, groups), dim=1, largest=False).indices
    members = torch.arange(0, size * groups, groups, device=distance.device)
    place = (nearest[:, :, None] + members).flatten(1)
    rest = torch.arange(size * groups, columns, device=distance.device).expand(len(distance), -1)
    place = torch.cat([place, rest], dim=1)
    value = monotone(distance.gather(1, place))
    found, slot = value.topk(count, dim=1, largest=False)
    last = found[:, -1:]
    equal = (value <= last).sum(dim=1) > count
    equal |= (monotone(minima) <= last).sum(dim=1) > nearest.shape[1]
    if equal.any():
        return None
    place, order = place.gather(1, slot).sort(dim=1)
    return found.gather(1, order), place


def sort_keys(distance: Tensor) -> Tensor:
    """Return whole numbers that order the gallery of each query by distance, then by index.

    A float32 distance leaves 29 bits of a float64 unused, which hold the index. Distances minus the smallest distance
    are not negative, and the bits of such numbers sort like the numbers; the sign of -0.0 is dropped.
    """
    distance = distance.to(torch.float64, memory_format=torch.contiguous_format, copy=True)
    distance -= distance.amin(dim=1, keepdim=True)
    index_bits = (1 << (distance.shape[1] - 1).bit_length()) - 1
    of_distance = ~index_bits & torch.iinfo(torch.int64).max
    index = torch.arange(distance.shape[1], device=distance.device)
    return distance.view(torch.int64).bitwise_and_(of_distance).bitwise_or_(index)


def _joint_keys(distance: Tensor, row: Tensor, column: Tensor, gallery: int) -> Tensor:
    """Return whole numbers that order by row, then by float32 distance, then by column."""
    bits = (distance + 0.0).view(torch.int32)  # + 0.0 turns -0.0 into 0.0
    ascending = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # the bits of negative numbers descend
    return (row << 32).add_(ascending).add_(2**31).mul_(gallery).add_(column)
