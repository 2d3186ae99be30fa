r"""Exact search: the nearest gallery entries of every query, without identities."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from stmi_layers._checks import check_positive
from stmi_layers._precision import without_autocast
from stmi_layers._ranking import Metric, centre_of, comparable, squared_norms
from stmi_layers._typing import typed
from stmi_layers.kernels.ranking import smallest, sort_keys


@typed
def nearest(
    query: Float[Tensor, "queries dim"],
    gallery: Float[Tensor, "gallery dim"],
    k: int = 10,
    *,
    metric: Metric = "euclidean",
    chunk_size: int = 64,
) -> tuple[Int[Tensor, "queries ranked"], Float[Tensor, "queries ranked"]]:
    r"""Find the `k` nearest gallery entries of every query, and their squared distances.

    $$d(q, g) = \lVert q - g \rVert^2$$

    The order is that of [`reid_metrics`][stmi_layers.metrics.reid_metrics], but needs no identities; entries at equal
    distance are listed by their index in the gallery. Distances are computed in at least float32. Matrix products find
    the entries, and differences of features then give the exact distances of these entries.

    Args:
        query: one representation per query.
        gallery: one representation per gallery entry.
        k: number of entries listed per query, at least 1; a smaller gallery is listed completely.
        metric: `"euclidean"`, or `"cosine"`, which scales the features to unit length first: a squared distance is then
            twice one minus the cosine. A feature of zeros stays as it is, at squared distance 1 from all others.
        chunk_size: number of queries compared at once. It bounds the working memory, about `16 * chunk_size` bytes per
            gallery entry, and does not change the result.

    Returns:
        Indices into the gallery, nearest first, and the squared distances, in at least float32. A copy of the query has
        distance 0.

    Raises:
        ValueError: when features are not finite, or an option is out of range.

    Examples:
        >>> nearest(torch.tensor([[0.0]]), torch.tensor([[2.0], [1.0], [-1.0]]), k=2)
        (tensor([[1, 2]]), tensor([[1., 1.]]))
    """
    check_positive(k=k, chunk_size=chunk_size)
    query, gallery = comparable(query, gallery, metric)
    k = min(k, len(gallery))
    entries = query.new_empty((len(query), k), dtype=torch.int64)
    distances = query.new_empty(len(query), k)
    if k == 0:
        return entries, distances
    centre = centre_of(gallery)
    if centre.any():  # features around 0 need no copy
        gallery = gallery - centre
    norms = squared_norms(gallery)
    for rows in torch.arange(len(query), device=query.device).split(chunk_size):
        centred = query[rows] - centre
        with without_autocast(query):
            rough = torch.addmm(norms, centred, gallery.T, alpha=-2)
        found = _smallest(rough, k)
        exact = torch.stack([(gallery[column] - centred).square().sum(dim=1) for column in found.unbind(dim=1)], dim=1)
        distances[rows], order = exact.sort(dim=1, stable=True)
        entries[rows] = found.gather(1, order)
    return entries, distances


def _smallest(rough: Tensor, k: int) -> Tensor:
    """Return the columns of the `k` smallest numbers of every row, in ascending order; the first wins a tie."""
    if (found := smallest(rough, k)) is not None:
        return found[1]
    return sort_keys(rough).topk(k, dim=1, largest=False).indices.sort(dim=1).values
