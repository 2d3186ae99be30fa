"""Best matches of queries that the rules allow, a record per match."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stmi_layers.training.neighbours import Search
from stmi_layers.training.protocol import FIELDS
from stmi_layers.training.record import Item, Panel
from stmi_layers.training.shards import Shards


class Match(NamedTuple):
    """Gallery entry that matches a query.

    Attributes:
        row: row of the entry in the index.
        item: item of the entry.
        similarity: cosine with the query, from -1 to 1.
        right: whether the entry has the identity of the query; None if either identity is unknown.
    """

    row: int
    item: Item
    similarity: float
    right: bool | None

    @property
    def distance(self) -> float:
        """Euclidean distance of the two descriptors, which have length 1."""
        return max(0.0, 2 - 2 * self.similarity) ** 0.5


@dataclass(frozen=True)
class Rules:
    """Rules that exclude gallery entries.

    Attributes:
        drop: column; entries that equal the query in identity and in this column are excluded, as in the protocols.
        exclude: column; entries that equal the query in it are excluded, whatever their identity.
        min_similarity: lowest cosine of a match.
    """

    drop: str | None = None
    exclude: str | None = None
    min_similarity: float = -1.0

    def allow(self, query: Item, entry: Item) -> bool:
        """Tell whether an entry may be a match; the images of the query never are."""
        if query.images == entry.images:
            return False
        if self.exclude and equal(query, entry, self.exclude):
            return False
        return not (self.drop and equal(query, entry, "identity") and equal(query, entry, self.drop))


def value_of(item: Item, column: str) -> Any:
    """Return the value of an item in a column; None if it has no value."""
    return getattr(item, column) if column in FIELDS else item.columns.get(column)


def equal(one: Item, other: Item, column: str) -> bool:
    """Tell whether two items have values in a column, and the values are equal."""
    value = value_of(one, column)
    return value is not None and value == value_of(other, column)


def find_matches(
    search: Search, shards: Shards, vectors: Tensor, queries: Sequence[Item], *, k: int, rules: Rules
) -> list[list[Match]]:
    """Find the `k` best matches of every query that the rules allow, best first.

    If the rules leave too few matches of a query, more entries are searched.

    Raises:
        ValueError: when a column of the rules is unknown to all queries.
    """
    _check_columns(queries, rules)
    rows = shards.starts[-1]
    found: dict[int, list[Match]] = {}
    exhausted: dict[int, bool] = {}  # no entry that was not looked at could be a match
    todo, fetch = list(range(len(queries))), min(rows, k + 1)
    while todo:
        entries, distances = search(vectors[todo], fetch)
        items = shards.items_at(entries[entries >= 0].tolist())
        for place, query in enumerate(todo):
            near = zip(entries[place].tolist(), distances[place].tolist(), strict=True)
            pairs = [(row, 1 - distance / 2) for row, distance in near if row >= 0]
            close = [(row, cosine) for row, cosine in pairs if cosine >= rules.min_similarity]
            some = [_match(row, cosine, queries[query], items[row]) for row, cosine in close]
            found[query] = [match for match in some if rules.allow(queries[query], match.item)][:k]
            exhausted[query] = len(close) < len(pairs) or fetch >= rows
        todo = [query for query in todo if len(found[query]) < k and not exhausted[query]]
        fetch = min(rows, 4 * fetch)
    return [found[query] for query in range(len(queries))]


def _match(row: int, similarity: float, query: Item, entry: Item) -> Match:
    known = query.identity is not None and entry.identity is not None
    return Match(row, entry, similarity, query.identity == entry.identity if known else None)


def _check_columns(queries: Sequence[Item], rules: Rules) -> None:
    for name in ("drop", "exclude"):
        column = getattr(rules, name)
        if column and all(value_of(item, column) is None for item in queries):
            known = sorted(
                {one for item in queries for one in (*FIELDS, *item.columns) if value_of(item, one) is not None}
            )
            raise ValueError(
                f"{name} must be a column of the queries, {', '.join(known)}; received {column!r} (--{name})"
            )
    if rules.drop and all(item.identity is None for item in queries):
        raise ValueError("drop compares identities, and no query has one; --exclude leaves out by the column alone")


def as_json(queries: Sequence[Item], matches: Sequence[Sequence[Match]]) -> list[dict[str, Any]]:
    """Return queries and their matches as plain values."""
    return [
        {
            **_facts(query),
            "found": bool(some),
            "matches": [
                {
                    "rank": rank,
                    "row": match.row,
                    **_facts(match.item),
                    "similarity": round(match.similarity, 6),
                    "distance": round(match.distance, 6),
                    "right": match.right,
                }
                for rank, match in enumerate(some, start=1)
            ],
        }
        for query, some in zip(queries, matches, strict=True)
    ]


def _facts(item: Item) -> dict[str, Any]:
    numbers = {name: getattr(item, name) for name in ("identity", "camera", "view", "scene")}
    images = [
        list(map(str, one)) if isinstance(one, Panel) else None if one is None else str(one) for one in item.images
    ]
    return {"name": item.name, **numbers, **item.columns, "images": images}


def as_table(queries: Sequence[Item], matches: Sequence[Sequence[Match]], *, shown: int) -> str:
    """Format the matches of the first queries as text."""
    lines = []
    for query, some in list(zip(queries, matches, strict=True))[:shown]:
        lines.append(f"query {query.name}{_identity(query)}" + ("" if some else ": not in the gallery"))
        width = max((len(match.item.name) for match in some), default=0)
        for rank, match in enumerate(some, start=1):
            verdict = {None: "", True: "  right", False: "  wrong"}[match.right]
            numbers = f"similarity {match.similarity:6.3f}  distance {match.distance:.3f}"
            lines.append(f"  {rank:3}  {match.item.name:{width}}  {numbers}{verdict}{_identity(match.item)}")
    if len(queries) > shown:
        lines.append(f"... and {len(queries) - shown} more queries")
    return "\n".join(lines)


def _identity(item: Item) -> str:
    identity = "" if item.identity is None else f"  identity {item.identity}"
    return identity + ("" if item.camera is None else f"  camera {item.camera}")


def first_right(matches: Sequence[Sequence[Match]]) -> tuple[int, int]:
    """Count the queries whose first match is right, and the queries whose first match is known to be right or wrong."""
    known = [some[0].right for some in matches if some and some[0].right is not None]
    return sum(known), len(known)


def to_tensor(shards: Shards, name: str) -> Tensor:
    """Return all vectors of a small extraction."""
    return torch.cat([shards.vectors(number, name) for number in range(len(shards))])
