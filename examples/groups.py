"""Scores of groups of queries: the metrics for every value of a column, against the whole gallery."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from stmi_layers import ReIDMetrics
from stmi_layers.training import Item, Protocol, score
from stmi_layers.training.protocol import column
from stmi_layers.training.report import as_numbers

Scores = dict[str, dict[str, ReIDMetrics]]


def score_groups(descriptors: Mapping[str, Tensor], items: Sequence[Item], protocol: Protocol, name: str) -> Scores:
    """Score the queries of each value of a column separately; every query ranks the gallery of the whole split.

    Args:
        descriptors: one row per item, by any names.
        items: items of the split.
        protocol: what a query may match.
        name: name of a column of the set, such as a column of `items.csv`.

    Returns:
        Metrics of the descriptors by sorted values of the column.

    Raises:
        ValueError: when a query has no value in that column.
    """
    query, gallery = (set(indices.tolist()) for indices in protocol.split(items))
    values = {index: str(column(items[index], name, "groups")) for index in query}
    alone = replace(protocol, query_cameras=())  # roles tell queries from the gallery instead
    scores: Scores = {}
    for value in sorted(set(values.values())):
        asking = {index for index in query if values[index] == value}
        kept = sorted(asking | gallery)
        chosen = [_with_role(items[index], index in asking, index in gallery) for index in kept]
        rows = {key: descriptor[torch.tensor(kept)] for key, descriptor in descriptors.items()}
        scores[value] = score(rows, chosen, alone)
    return scores


def _with_role(item: Item, asks: bool, answers: bool) -> Item:
    return replace(item, role="both" if asks and answers else "query" if asks else "gallery")


def numbers_of(metrics: Mapping[str, ReIDMetrics]) -> dict[str, dict[str, float]]:
    """Return the numbers of each descriptor by name, as metrics.json holds them."""
    return {name: as_numbers(value) for name, value in metrics.items()}
