"""Which gallery entries a query may match, as an object that can be read, printed and used.

    Protocol()                                    identity and camera: RGBNT201, RGBNT100, RGBN300, WMVEID863
    Protocol(drop="scene")                        identity and scene: MSVR310
    Protocol(match="model", drop="session")       any two columns of one's own `items.csv`

An entry that equals the query in both columns is dropped from its ranking: it is neither right nor wrong.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stmi_layers import ReIDMetrics, rank_gallery, reid_metrics, reranked_metrics
from stmi_layers.training.record import Item
from stmi_layers.training.sampler import query_gallery

RANKS = (1, 5, 10)
# Everywhere else the camera, or the view that stands for it.
DROPPED = {"MSVR310": "scene"}
FIELDS = ("name", "identity", "camera", "scene", "view")


@dataclass(frozen=True)
class Protocol:
    """What a query may match.

    Attributes:
        match: the column in which a gallery entry has to equal the query to be a right answer.
        drop: the second column: an entry that equals the query in both is dropped from its ranking, neither right
            nor wrong, because it shows the same moment. `name` drops nothing but the query itself.
        query_cameras: the cameras that query the others, in a set that does not tell queries from the gallery;
            without any, everything queries everything there.
    """

    match: str = "identity"
    drop: str = "camera"
    query_cameras: tuple[int, ...] = ()

    def describe(self, items: Sequence[Item]) -> str:
        """The protocol on some items in a line: who queries whom, what is dropped, and who has nothing to find."""
        query, gallery = query_gallery(items, self.query_cameras)
        if self.query_cameras:
            who = f"cameras {list(self.query_cameras)} query the others"
        else:
            who = "all query all" if len(query) == len(gallery) == len(items) else "the query split queries the gallery"
        skipped = self.count_skipped(items)
        return (
            f"{who}, {len(query)} against {len(gallery)}; same {self.match} and {self.drop} dropped; "
            f"{skipped} of {len(query)} queries skipped"
            + (f", for the gallery has their {self.match} with no other {self.drop}" if skipped else "")
        )

    def count_skipped(self, items: Sequence[Item]) -> int:
        """How many queries have no right answer left in the gallery."""
        query, gallery = query_gallery(items, self.query_cameras)
        match, drop = self.codes(items)
        pairs = list(zip(match.tolist(), drop.tolist(), strict=True))
        answers = Counter(pairs[index][0] for index in gallery.tolist())
        dropped = Counter(pairs[index] for index in gallery.tolist())
        return sum(answers[pairs[index][0]] == dropped[pairs[index]] for index in query.tolist())

    def codes(self, items: Sequence[Item]) -> tuple[Int[Tensor, " items"], Int[Tensor, " items"]]:
        """Both columns as numbers that are equal where their values are.

        Raises:
            ValueError: when some item has no such column.
        """
        match, drop = (_codes([column(item, name) for item in items]) for name in (self.match, self.drop))
        return match, drop

    def score(
        self, descriptor: Float[Tensor, "items dim"], items: Sequence[Item], *, rerank: bool = False
    ) -> ReIDMetrics:
        """How well the gallery is ranked by the distance of descriptors, or by k-reciprocal neighbours as well."""
        query, gallery = query_gallery(items, self.query_cameras)
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
        """Some queries, evenly spread, and the indices of their `k` best matches, -1 where there are fewer."""
        query, gallery = query_gallery(items, self.query_cameras)
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


def protocol_for(
    items: Sequence[Item], query_cameras: Sequence[int] = (), *, match: str | None = None, drop: str | None = None
) -> Protocol:
    """The protocol of the set that items come from, or the one asked for."""
    return Protocol(match or "identity", drop or DROPPED.get(items[0].layout, "camera"), tuple(query_cameras))


def column(item: Item, name: str) -> str | int:
    """The value of an item in a column: what its name says, or `items.csv`."""
    value = getattr(item, name) if name in FIELDS else item.columns.get(name)
    if value is None:
        there = [field for field in FIELDS if getattr(item, field) is not None] + list(item.columns)
        raise ValueError(
            f"match and drop must be columns of the set, {', '.join(there)}; received {name!r}; "
            "further ones go into items.csv (--match, --drop)"
        )
    return value


def _codes(values: Sequence[str | int]) -> Int[Tensor, " items"]:
    codes = {value: code for code, value in enumerate(dict.fromkeys(values))}
    return torch.tensor([codes[value] for value in values])
