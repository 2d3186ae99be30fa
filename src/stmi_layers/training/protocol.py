"""Protocol of a test split: who queries whom, and which gallery entries a query may match.

    Protocol()                                    identity and camera: RGBNT201, RGBNT100, RGBN300
    Protocol(drop="scene")                        identity and scene: MSVR310
    Protocol(junk=(-1,))                          Market-1501: images of identity -1 are neither right nor wrong
    Protocol(match="model", drop="session")       any two columns of `items.csv` or of a manifest

An entry that equals the query in both columns is dropped from the ranking: it is neither right nor wrong.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stmi_layers import ReIDMetrics, rank_gallery, reid_metrics, reranked_metrics
from stmi_layers.training.record import Item
from stmi_layers.training.settings import Data

RANKS = (1, 5, 10)
DROPPED = {"MSVR310": "scene"}
FIELDS = ("name", "identity", "camera", "scene", "view")
Indices = tuple[Int[Tensor, " queries"], Int[Tensor, " gallery"]]


@dataclass(frozen=True)
class Protocol:
    """Rules for the matches of a query.

    Attributes:
        match: column in which a gallery entry has to equal the query to be a right answer.
        drop: second column: an entry that equals the query in both columns is dropped from the ranking, because it
            shows the same moment. `name` drops only the query itself.
        query_cameras: cameras whose items query the items of the other cameras, in a set without a query split. If
            empty, every item of such a set queries all items.
        junk: values of the column `match` that mark useless images: such queries are left out, and such gallery
            entries are ignored, neither right nor wrong.
    """

    match: str = "identity"
    drop: str = "camera"
    query_cameras: tuple[int, ...] = ()
    junk: tuple[int | str, ...] = ()

    def split(self, items: Sequence[Item]) -> Indices:
        """Return the indices of the queries and of the gallery, without junk.

        Raises:
            ValueError: when no query or no gallery entry is left.
        """
        query, gallery = query_gallery(items, self.query_cameras)
        if self.junk:
            useful = torch.tensor([column(item, self.match) not in self.junk for item in items])
            query, gallery = query[useful[query]], gallery[useful[gallery]]
        if not len(query) or not len(gallery):
            raise ValueError(f"junk must leave a query and a gallery entry; received {list(self.junk)}")
        return query, gallery

    def describe(self, items: Sequence[Item]) -> str:
        """Describe the protocol on items in a line: who queries whom, what is dropped, how many queries are skipped."""
        query, gallery = self.split(items)
        junk = sum(column(item, self.match) in self.junk for item in items) if self.junk else 0
        if self.query_cameras:
            who = f"cameras {list(self.query_cameras)} query the others"
        else:
            roles = {item.role for item in items}
            who = "all query all" if roles == {"both"} else "the query split queries the gallery"
        skipped = self.count_skipped(items)
        return (
            f"{who}, {len(query)} against {len(gallery)}; same {self.match} and {self.drop} dropped; "
            + (f"{junk} junk items ignored; " if self.junk else "")
            + f"{skipped} of {len(query)} queries skipped"
            + (f", because the gallery has their {self.match} with no other {self.drop}" if skipped else "")
        )

    def count_skipped(self, items: Sequence[Item]) -> int:
        """Count the queries without a right answer in the gallery."""
        query, gallery = self.split(items)
        match, drop = self.codes(items)
        pairs = list(zip(match.tolist(), drop.tolist(), strict=True))
        answers = Counter(pairs[index][0] for index in gallery.tolist())
        dropped = Counter(pairs[index] for index in gallery.tolist())
        return sum(answers[pairs[index][0]] == dropped[pairs[index]] for index in query.tolist())

    def codes(self, items: Sequence[Item]) -> tuple[Int[Tensor, " items"], Int[Tensor, " items"]]:
        """Return both columns as numbers that are equal where the values are equal.

        Raises:
            ValueError: when an item lacks one of the columns.
        """
        match, drop = (_codes([column(item, name) for item in items]) for name in (self.match, self.drop))
        return match, drop

    def score(
        self, descriptor: Float[Tensor, "items dim"], items: Sequence[Item], *, rerank: bool = False
    ) -> ReIDMetrics:
        """Compute the metrics of a ranking by distance of the descriptors, or by k-reciprocal neighbours as well."""
        query, gallery = self.split(items)
        match, drop = self.codes(items)
        return (reranked_metrics if rerank else reid_metrics)(
            descriptor[query],
            descriptor[gallery],
            match[query],
            match[gallery],
            query_groups=drop[query],
            gallery_groups=drop[gallery],
            ranks=RANKS,
        )

    def best_matches(
        self, descriptor: Float[Tensor, "items dim"], items: Sequence[Item], *, queries: int, k: int
    ) -> tuple[Int[Tensor, " queries"], Int[Tensor, "queries k"]]:
        """Return evenly spread queries, and the indices of their `k` best matches, -1 where there are fewer."""
        query, gallery = self.split(items)
        match, drop = self.codes(items)
        shown = query[torch.linspace(0, len(query) - 1, min(queries, len(query))).long()]
        best = rank_gallery(
            descriptor[shown],
            descriptor[gallery],
            match[shown],
            match[gallery],
            query_groups=drop[shown],
            gallery_groups=drop[gallery],
            k=min(k, len(gallery)),
        )
        return shown, torch.where(best < 0, best, gallery[best.clamp(min=0)])


def protocol_for(items: Sequence[Item], data: Data | None = None) -> Protocol:
    """Return the protocol of the set that items come from; settings in `data` take precedence.

    By default entries of the query's scene are dropped on MSVR310. In other sets entries of the query's camera are
    dropped, or entries of its view if no item has a camera.
    """
    cameras = any(item.camera is not None for item in items)
    drop = DROPPED.get(items[0].layout, "camera" if cameras else "view")
    if data is None:
        return Protocol(drop=drop)
    return Protocol(data.match, data.drop or drop, data.query_cameras, data.junk)


def query_gallery(items: Sequence[Item], query_cameras: Sequence[int] = ()) -> Indices:
    """Return the indices of the queries and of the gallery.

    Args:
        items: items of the test split. Roles decide if they tell queries from the gallery.
        query_cameras: otherwise, the cameras that query all other cameras; if empty, every item is in both.

    Raises:
        ValueError: when a camera does not exist, no camera is left for the gallery, or the set has a query split.
    """
    roles = [item.role for item in items]
    if any(role != "both" for role in roles):
        if query_cameras:
            raise ValueError(
                f"query_cameras must be empty where the set has a query split; received {list(query_cameras)}"
            )
        query, gallery = (torch.tensor([role != other for role in roles]) for other in ("gallery", "query"))
        return query.nonzero().flatten(), gallery.nonzero().flatten()
    if not query_cameras:
        return torch.arange(len(items)), torch.arange(len(items))
    there = sorted({item.camera for item in items if item.camera is not None})
    unknown = sorted(set(query_cameras).difference(there))
    if unknown:
        raise ValueError(f"query_cameras must be cameras of the items, {there}; received {unknown} among them")
    is_query = torch.tensor([item.camera in query_cameras for item in items])
    if is_query.all():
        raise ValueError(f"query_cameras must leave a camera for the gallery; received all of them, {there}")
    return is_query.nonzero().flatten(), (~is_query).nonzero().flatten()


def column(item: Item, name: str, argument: str = "match and drop") -> str | int:
    """Return the value of an item in a column: a field of `Item`, or a column of `items.csv` or the manifest.

    An error names the `argument` that gave the name of the column.
    """
    value = getattr(item, name) if name in FIELDS else item.columns.get(name)
    if value is None:
        there = [field for field in FIELDS if getattr(item, field) is not None] + list(item.columns)
        raise ValueError(
            f"{argument} must name columns of the set, {', '.join(there)}; received {name!r}, which {item.name} "
            "has no value of. Add further columns to items.csv or to the manifest"
        )
    return value


def _codes(values: Sequence[str | int]) -> Int[Tensor, " items"]:
    codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return torch.tensor([codes[value] for value in values])
