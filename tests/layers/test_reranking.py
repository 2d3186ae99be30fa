"""k-reciprocal re-ranking against sets built from the definition, and the scores of its ranking."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from case import unchecked
from stmi_layers import reid_metrics
from stmi_layers._reciprocal import reciprocal_distances
from stmi_layers.reranking import k_reciprocal_rerank, reranked_metrics


def by_sets(
    query: Tensor, gallery: Tensor, k1: int, k2: int, weight: float, authors: bool = False
) -> list[list[float]]:
    """The definition, entry by entry: Zhong et al., CVPR 2017, section 3; and what their code does otherwise."""
    half = [k1 // 2, k1 // 2 + (k1 % 4 == 3)][authors]  # a half to the even number
    features = torch.cat([query, gallery]).double()
    entries = range(len(features))
    distance = [[float((features[i] - features[j]).square().sum()) for j in entries] for i in entries]
    distance = [[value / (max(row) or 1.0) for value in row] for row in distance]
    ranking = [sorted((j for j in entries if j != i), key=lambda j, i=i: (distance[i][j], j)) for i in entries]

    def nearest(p: int, k: int) -> set[int]:
        return {p, *ranking[p][:k]}

    def reciprocal(p: int, k: int) -> set[int]:
        return {g for g in nearest(p, k) if p in nearest(g, k)}

    def extended(p: int) -> set[int]:
        core = reciprocal(p, k1)
        joined = [reciprocal(q, half) for q in core]
        slack = 1e-9 if authors else -1e-9
        return core.union(*(other for other in joined if len(core & other) > 2 / 3 * len(other) + slack))

    members = [extended(p) for p in entries]
    encoded = [[math.exp(-distance[p][j]) if j in members[p] else 0.0 for j in entries] for p in entries]
    if authors:
        encoded = [[value / sum(row) for value in row] for row in encoded]
    around = [[p, *ranking[p][: k2 - 1]] for p in entries]
    encoded = [[sum(encoded[i][j] for i in some) / len(some) for j in entries] for some in around]

    def jaccard(p: int, g: int) -> float:
        return 1 - sum(map(min, encoded[p], encoded[g])) / sum(map(max, encoded[p], encoded[g]))

    return [
        [(1 - weight) * jaccard(p, g) + weight * distance[p][g] for g in entries if g >= len(query)]
        for p in range(len(query))
    ]


@st.composite
def features(draw, whole: bool = False):
    """Queries and gallery in clusters, so that some neighbours are reciprocal; whole numbers give ties."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def some(rows: int) -> Tensor:
        if whole:
            return torch.randint(3, (rows, 2), generator=generator).double()
        centres = 3 * torch.randint(3, (rows, 3), generator=generator)
        return centres + torch.randn(rows, 3, generator=generator, dtype=torch.float64)

    return some(draw(st.integers(1, 5))), some(draw(st.integers(1, 20)))


@pytest.mark.parametrize("reading", ["paper", "authors"])
@pytest.mark.parametrize("whole", [False, True])
@given(st.data(), st.integers(1, 9), st.integers(1, 7), st.sampled_from([0.0, 0.3, 1.0]), st.integers(1, 30))
def test_distances_are_those_of_the_sets(whole, reading, data, k1, k2, weight, chunk_size):
    query, gallery = data.draw(features(whole))
    actual = k_reciprocal_rerank(query, gallery, k1=k1, k2=k2, weight=weight, reading=reading, chunk_size=chunk_size)
    expected = torch.tensor(by_sets(query, gallery, k1, k2, weight, reading == "authors"), dtype=torch.float64)
    torch.testing.assert_close(actual, expected, atol=1e-9, rtol=0)


def test_the_readings_differ():
    query, gallery = torch.randn(9, 4), torch.randn(60, 4)
    paper, authors = (k_reciprocal_rerank(query, gallery, reading=reading) for reading in ("paper", "authors"))
    assert (paper - authors).abs().max() > 1e-3


def test_single_precision_follows_the_sets(device):
    query, gallery = torch.randn(9, 16, device=device), torch.randn(90, 16, device=device)
    actual = k_reciprocal_rerank(query, gallery)
    expected = torch.tensor(by_sets(query.cpu(), gallery.cpu(), 20, 6, 0.3))
    torch.testing.assert_close(actual.cpu(), expected, atol=1e-5, rtol=0)
    half = k_reciprocal_rerank(query.half(), gallery.half())
    assert half.dtype == torch.float32
    assert torch.equal(half, k_reciprocal_rerank(query.half().float(), gallery.half().float()))


@given(features(), st.floats(0.01, 100), st.integers(0, 99))
def test_scale_and_place_of_the_features_do_not_matter_nor_the_order_of_the_gallery(some, scale, seed):
    query, gallery = some
    plain = k_reciprocal_rerank(query, gallery, k1=4, k2=2)
    shift = torch.randn(3, dtype=torch.float64)
    moved = k_reciprocal_rerank(scale * (query + shift), scale * (gallery + shift), k1=4, k2=2)
    torch.testing.assert_close(moved, plain, atol=1e-6, rtol=0)
    order = torch.randperm(len(gallery), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(k_reciprocal_rerank(query, gallery[order], k1=4, k2=2), plain[:, order])
    assert 0 <= plain.min() <= plain.max() <= 1


def test_many_pairs_are_added_up_in_parts(monkeypatch):
    query, gallery = torch.randn(6, 4, dtype=torch.float64), torch.randn(40, 4, dtype=torch.float64)
    plain = k_reciprocal_rerank(query, gallery)
    monkeypatch.setattr("stmi_layers._reciprocal._PAIRS", 7)
    torch.testing.assert_close(k_reciprocal_rerank(query, gallery), plain)


def test_cosine_is_the_distance_of_unit_features():
    query, gallery = torch.randn(5, 8), torch.randn(30, 8)
    unit = [part / part.norm(dim=1, keepdim=True) for part in (query, gallery)]
    torch.testing.assert_close(
        k_reciprocal_rerank(query, gallery, metric="cosine"), k_reciprocal_rerank(*unit), atol=1e-5, rtol=0
    )


def test_equal_features_are_at_distance_zero():
    assert torch.equal(k_reciprocal_rerank(torch.ones(2, 3), torch.ones(4, 3), k1=5, k2=1), torch.zeros(2, 4))


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_the_weight_of_features_alone_scores_as_they_do(seed, chunk_size):
    generator = torch.Generator().manual_seed(seed)
    query, gallery = (torch.randn(rows, 4, generator=generator, dtype=torch.float64) for rows in (8, 40))
    query_ids, gallery_ids = (torch.randint(4, (rows,), generator=generator) for rows in (8, 40))
    groups = {
        "query_groups": torch.randint(2, (8,), generator=generator),
        "gallery_groups": torch.randint(2, (40,), generator=generator),
    }
    for some in (groups, {}):
        expected = reid_metrics(query, gallery, query_ids, gallery_ids, **some, ranks=(1, 3))
        actual = reranked_metrics(
            query, gallery, query_ids, gallery_ids, **some, ranks=(1, 3), weight=1.0, chunk_size=chunk_size
        )
        torch.testing.assert_close(actual.average_precision, expected.average_precision, equal_nan=True)
        assert (actual.num_queries, actual.num_skipped) == (expected.num_queries, expected.num_skipped)
        assert actual.cmc == pytest.approx(expected.cmc)
        assert (actual.mAP, actual.mINP) == pytest.approx((expected.mAP, expected.mINP))


def test_shared_neighbours_correct_a_ranking():
    """Identity 0 is a chain whose far end is nearer to identity 1 than to the query, but linked to it."""
    chain = torch.stack([torch.arange(10) * 0.5, torch.zeros(10)], dim=1)
    others = torch.tensor([[1.0, 2.0]]) + 0.3 * torch.randn(10, 2)
    gallery, ids = torch.cat([chain, others]), torch.arange(20) // 10
    inputs = (torch.tensor([[0.0, 0.1]]), gallery, torch.tensor([0]), ids)
    plain, reranked = reid_metrics(*inputs).mAP, reranked_metrics(*inputs, k1=6, k2=3).mAP
    assert plain < 0.9 * reranked


def test_memory_is_of_chunks_not_of_all_pairs():
    chunks = reciprocal_distances(torch.randn(10, 4), torch.randn(50, 4), 5, 2, 0.3, "euclidean", 4)
    assert [tuple(chunk.shape) for chunk in chunks] == [(4, 50), (4, 50), (2, 50)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k1": 0}, "k1 must be at least 1; received 0"),
        ({"k2": 0}, "k2 must be at least 1; received 0"),
        ({"weight": 1.5}, r"weight must be a probability in \[0, 1\]; received 1.5"),
        ({"chunk_size": 0}, "chunk_size must be at least 1; received 0"),
        ({"metric": "dot"}, "metric must be one of 'euclidean', 'cosine'; received 'dot'"),
        ({"reading": "code"}, "reading must be one of 'paper', 'authors'; received 'code'"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        unchecked(k_reciprocal_rerank)(torch.randn(2, 3), torch.randn(4, 3), **options)


def test_features_and_groups_that_cannot_be_ranked():
    query, gallery, ids = torch.randn(2, 3), torch.randn(4, 3), torch.arange(4)
    with pytest.raises(ValueError, match=r"gallery must hold finite features .*; 1 of 4 rows are not \(first: row 1\)"):
        k_reciprocal_rerank(query, gallery.index_fill(0, torch.tensor([1]), math.nan))
    with pytest.raises(ValueError, match="query must hold finite"):
        k_reciprocal_rerank(query * math.inf, gallery)
    with pytest.raises(ValueError, match="must be given together; received only gallery_groups"):
        reranked_metrics(query, gallery, ids[:2], ids, gallery_groups=ids)
    with pytest.raises(ValueError, match=r"ranks must be at least 1; received \(0,\)"):
        reranked_metrics(query, gallery, ids[:2], ids, ranks=(0,))
    with pytest.raises(ValueError, match="no query has a positive in the gallery: received 2 queries"):
        reranked_metrics(query, gallery, ids[:2] + 9, ids)
    with pytest.raises(TypeCheckError):
        k_reciprocal_rerank(query, torch.randn(4, 5))
