"""Retrieval scores against brute force and scikit-learn, and the laws they obey."""

import dataclasses
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

import reference
from case import unchecked
from stmi_layers import ReIDMetrics, rank_gallery, reid_metrics
from stmi_layers.kernels.ranking import positive_ranks, ranks_by_counting, ranks_by_selection

METRICS = ["euclidean", "cosine"]


@st.composite
def retrievals(draw, whole: bool = False):
    """Features, identities and groups of queries and gallery; small whole numbers give many ties."""
    queries, gallery = draw(st.integers(1, 9)), draw(st.integers(1, 25))
    identities, groups = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=generator)

    def features(rows: int) -> Tensor:
        if whole:
            return integers(3, rows, 3).float()
        return torch.randn(rows, 5, generator=generator, dtype=torch.float64)

    inputs = (
        features(queries),
        features(gallery),
        integers(identities, queries),
        integers(identities, gallery),
    )
    return inputs, {"query_groups": integers(groups, queries), "gallery_groups": integers(groups, gallery)}


def positives_exist(inputs, groups) -> bool:
    rankings = reference.ranked_gallery(*inputs, **groups)
    return any(inputs[2][q] == inputs[3][g] for q, ranking in enumerate(rankings) for g in ranking)


def assert_matches_the_loops(inputs, groups, metric: str, **options) -> None:
    rankings = reference.ranked_gallery(*inputs, **groups, metric=metric)
    query_ids, gallery_ids = inputs[2:]
    scores = [
        reference.ranking_scores(ranking, identity, gallery_ids)
        for ranking, identity in zip(rankings, query_ids.tolist(), strict=True)
    ]
    actual = reid_metrics(*inputs, **groups, metric=metric, ranks=(1, 2, 5), **options)
    evaluated = [score for score in scores if score is not None]
    precisions, firsts, penalties = zip(*evaluated, strict=True)
    assert actual.num_queries == len(scores)
    assert actual.num_skipped == len(scores) - len(evaluated)
    assert actual.mAP == pytest.approx(sum(precisions) / len(evaluated))
    assert actual.mINP == pytest.approx(sum(penalties) / len(evaluated))
    expected = {rank: sum(first <= rank for first in firsts) / len(evaluated) for rank in (1, 2, 5)}
    assert actual.cmc == pytest.approx(expected)
    per_query = [math.nan if score is None else score[0] for score in scores]
    assert actual.average_precision.tolist() == pytest.approx(per_query, nan_ok=True)


@pytest.mark.parametrize("metric", METRICS)
@given(retrieval=retrievals(), chunk_size=st.integers(1, 10))
def test_scores_match_the_loops(retrieval, metric, chunk_size):
    inputs, groups = retrieval
    assume(positives_exist(inputs, groups))
    assert_matches_the_loops(inputs, groups, metric, chunk_size=chunk_size)


@given(retrieval=retrievals(whole=True), chunk_size=st.integers(1, 10))
def test_ties_are_ranked_by_gallery_index(retrieval, chunk_size):
    inputs, groups = retrieval
    assume(positives_exist(inputs, groups))
    assert_matches_the_loops(inputs, groups, "euclidean", chunk_size=chunk_size)


@pytest.mark.parametrize("metric", METRICS)
@given(retrieval=retrievals())
def test_scores_without_groups_match_the_loops(retrieval, metric):
    inputs, _ = retrieval
    assume(positives_exist(inputs, {}))
    assert_matches_the_loops(inputs, {}, metric)


@pytest.mark.parametrize("metric", METRICS)
def test_average_precision_matches_scikit_learn(metric, device):
    ranking = pytest.importorskip("sklearn.metrics")
    query, gallery = torch.randn(12, 16, device=device), torch.randn(90, 16, device=device)
    query_ids, gallery_ids = torch.arange(12, device=device) % 6, torch.arange(90, device=device) % 7
    query_groups, gallery_groups = (torch.arange(n, device=device) // 5 % 3 for n in (12, 90))
    actual = reid_metrics(
        query,
        gallery,
        query_ids,
        gallery_ids,
        query_groups=query_groups,
        gallery_groups=gallery_groups,
        metric=metric,
    )
    wide_query, wide_gallery = query.double().cpu(), gallery.double().cpu()
    if metric == "cosine":
        wide_query, wide_gallery = F.normalize(wide_query), F.normalize(wide_gallery)
    score = -torch.cdist(wide_query, wide_gallery)
    for q in range(12):
        same = gallery_ids == query_ids[q]
        keep = ~(same & (gallery_groups == query_groups[q])).cpu()
        expected = ranking.average_precision_score(same.cpu()[keep].numpy(), score[q, keep].numpy())
        assert actual.average_precision[q].item() == pytest.approx(expected, abs=1e-9)


@given(retrieval=retrievals(whole=True), k=st.integers(1, 30), chunk_size=st.integers(1, 10))
def test_ranking_matches_the_loops(retrieval, k, chunk_size):
    inputs, groups = retrieval
    for options in (groups, {}):
        expected = [(ranking + [-1] * k)[:k] for ranking in reference.ranked_gallery(*inputs, **options)]
        actual = rank_gallery(*inputs, k=k, chunk_size=chunk_size, **options)
        assert actual.tolist() == expected


@given(
    queries=st.integers(1, 6),
    gallery=st.integers(4, 40),
    levels=st.sampled_from([1, 3, 2**20]),
    seed=st.integers(0, 2**32 - 1),
)
def test_selected_and_counted_negatives_give_the_same_ranks(queries, gallery, levels, seed):
    """Few levels of distance make many ties, between positives and negatives and at both signs of zero."""
    generator = torch.Generator().manual_seed(seed)
    distance = (torch.randint(levels, (queries, gallery), generator=generator) - levels // 2).float()
    distance[:, ::3] *= -1  # some zeros become -0.0, which is no nearer than 0.0
    entry = torch.stack([torch.randperm(gallery, generator=generator)[:4] for _ in range(queries)])
    positive = torch.rand(entry.shape, generator=generator) < 0.7
    columns = max(1, int(positive.sum(dim=1).max()))
    worst = distance.gather(1, entry).masked_fill(~positive, -math.inf).amax(dim=1, keepdim=True)
    near = (distance <= worst).scatter(1, entry, False)
    selected = ranks_by_selection(distance, near, entry, positive, columns)
    counted = ranks_by_counting(distance, entry, positive, columns)
    assert torch.equal(selected, counted)
    assert torch.equal(positive_ranks(distance, entry, positive), counted)


@pytest.mark.parametrize("noise", [0.05, 10.0])
def test_useful_and_useless_features_are_ranked_alike_in_both_precisions(noise, device):
    """Features around their identity's centre take the selection, random ones the comparison with all."""
    centre = F.normalize(torch.randn(20, 16, device=device))
    query_ids, gallery_ids = torch.arange(40, device=device) % 20, torch.arange(400, device=device) % 20
    query, gallery = (
        centre[ids] + noise * torch.randn(len(ids), 16, device=device) for ids in (query_ids, gallery_ids)
    )
    single = reid_metrics(query, gallery, query_ids, gallery_ids)
    double = reid_metrics(query.double(), gallery.double(), query_ids, gallery_ids)
    assert (single.mAP > 0.9) == (noise < 1)
    torch.testing.assert_close(single.average_precision, double.average_precision, rtol=1e-3, atol=0)


@pytest.mark.parametrize("metric", METRICS)
@given(retrieval=retrievals())
def test_ranking_is_the_one_that_is_scored(retrieval, metric):
    inputs, groups = retrieval
    assume(positives_exist(inputs, groups))
    scores = reid_metrics(*inputs, **groups, metric=metric)
    rankings = rank_gallery(*inputs, k=len(inputs[1]), **groups, metric=metric)
    for q, ranking in enumerate(rankings.tolist()):
        score = reference.ranking_scores([g for g in ranking if g >= 0], int(inputs[2][q]), inputs[3])
        expected = math.nan if score is None else score[0]
        assert scores.average_precision[q].item() == pytest.approx(expected, nan_ok=True)


@given(retrieval=retrievals(), seed=st.integers(0, 99))
def test_order_of_queries_and_names_of_identities_do_not_matter(retrieval, seed):
    (query, gallery, query_ids, gallery_ids), groups = retrieval
    assume(positives_exist(retrieval[0], groups))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(query), generator=generator)
    names = torch.randperm(5, generator=generator) * 3 - 7
    scores = reid_metrics(query, gallery, query_ids, gallery_ids, **groups)
    groups["query_groups"] = groups["query_groups"][order]
    shuffled = reid_metrics(query[order], gallery, names[query_ids[order]], names[gallery_ids], **groups)
    assert shuffled.mAP == pytest.approx(scores.mAP)
    assert shuffled.mINP == pytest.approx(scores.mINP)
    assert shuffled.cmc == pytest.approx(scores.cmc)
    expected = scores.average_precision[order]
    torch.testing.assert_close(shuffled.average_precision, expected, equal_nan=True)


@pytest.mark.parametrize("metric", METRICS)
def test_perfect_ranking_scores_one(metric, device):
    ids = torch.arange(40, device=device) % 8
    features = F.one_hot(ids).float() + 0.01 * torch.randn(40, 8, device=device)
    scores = reid_metrics(features[:10], features, ids[:10], ids, metric=metric)
    assert (scores.mAP, scores.mINP, scores.cmc) == (1.0, 1.0, {1: 1.0, 5: 1.0, 10: 1.0})
    assert scores.num_skipped == 0


def test_worst_ranking_by_hand():
    gallery_ids = torch.tensor([1, 1, 1, 0, 0])
    scores = reid_metrics(torch.zeros(1, 1), torch.arange(5.0)[:, None], torch.tensor([0]), gallery_ids, ranks=[3, 4])
    assert scores.mAP == pytest.approx((1 / 4 + 2 / 5) / 2)
    assert scores.mINP == pytest.approx(2 / 5)
    assert scores.cmc == {3: 0.0, 4: 1.0}


def test_same_identity_and_group_is_dropped_and_nothing_else():
    query, gallery = torch.zeros(1, 1), torch.tensor([[1.0], [2.0], [3.0]])
    query_ids, gallery_ids = torch.tensor([7]), torch.tensor([7, 5, 7])
    # Without its nearest entry the query is left with a negative, then a positive.
    groups: dict[str, Any] = {"query_groups": torch.tensor([1]), "gallery_groups": torch.tensor([1, 1, 2])}
    scores = reid_metrics(query, gallery, query_ids, gallery_ids, **groups)
    assert scores.average_precision.tolist() == [0.5]
    assert rank_gallery(query, gallery, query_ids, gallery_ids, k=3, **groups).tolist() == [[1, 2, -1]]
    assert reid_metrics(query, gallery, query_ids, gallery_ids).mAP == pytest.approx((1 + 2 / 3) / 2)


def test_queries_without_a_positive_are_skipped_and_counted():
    query, gallery = torch.zeros(3, 1), torch.tensor([[1.0], [2.0]])
    # The first has a positive, the second only one of its own group, the third none at all.
    scores = reid_metrics(
        query,
        gallery,
        torch.tensor([0, 1, 99]),
        torch.tensor([0, 1]),
        query_groups=torch.tensor([0, 0, 0]),
        gallery_groups=torch.tensor([1, 0]),
    )
    assert (scores.num_queries, scores.num_skipped) == (3, 2)
    assert scores.average_precision.tolist() == pytest.approx([1.0, math.nan, math.nan], nan_ok=True)
    assert scores.mAP == 1.0


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_collapsed_features_are_ranked_by_index(metric, dtype, device):
    feature = torch.randn(1, 48, device=device, dtype=dtype)
    ids = torch.randint(9, (3000,), device=device)
    inputs = feature.expand(20, 48), feature.expand(3000, 48), ids[:20], ids
    ranking = rank_gallery(*inputs, k=3000, metric=metric, chunk_size=7)
    assert ranking.equal(torch.arange(3000, device=device).expand(20, 3000))
    expected = reference.ranking_scores(list(range(3000)), int(ids[0]), ids)
    scores = reid_metrics(*inputs, metric=metric, chunk_size=7)
    assert expected is not None
    assert scores.average_precision[0].item() == pytest.approx(expected[0])


def test_duplicates_are_ranked_by_index(device):
    distinct, which = (
        torch.randn(5, 8, device=device, dtype=torch.float64),
        torch.arange(300, device=device) % 5,
    )
    query = torch.randn(20, 8, device=device, dtype=torch.float64)
    ids = which.new_zeros(20), which.new_zeros(300)
    expected = torch.cdist(query, distinct)[:, which].argsort(dim=1, stable=True)
    assert rank_gallery(query, distinct[which], *ids, k=300).equal(expected)


def test_a_common_offset_hardly_costs_digits(device):
    query, gallery = (torch.randn(n, 32, device=device) + 4096 for n in (50, 500))
    ids = torch.zeros(50, device=device).long(), torch.zeros(500, device=device).long()
    nearest = rank_gallery(query, gallery, *ids, k=1)
    distance = torch.cdist(query.double(), gallery.double(), compute_mode="donot_use_mm_for_euclid_dist")
    best = distance.amin(dim=1, keepdim=True)
    torch.testing.assert_close(distance.gather(1, nearest), best, rtol=1e-2, atol=0)


def test_cosine_ignores_length_and_agrees_with_euclidean_on_unit_length():
    query, gallery = torch.randn(20, 8, dtype=torch.float64), torch.randn(100, 8, dtype=torch.float64)
    inputs = torch.arange(20) % 5, torch.arange(100) % 5
    cosine = rank_gallery(query, gallery, *inputs, metric="cosine")
    lengths = torch.rand(100, 1, dtype=torch.float64) + 0.1
    assert rank_gallery(query * 7, gallery * lengths, *inputs, metric="cosine").equal(cosine)
    assert rank_gallery(F.normalize(query), F.normalize(gallery), *inputs).equal(cosine)


def test_a_zero_vector_is_orthogonal_to_everything():
    gallery = torch.tensor([[-1.0], [0.0], [1.0]])
    ids = torch.zeros(1, dtype=torch.int64), torch.zeros(3, dtype=torch.int64)
    assert rank_gallery(torch.ones(1, 1), gallery, *ids, k=3, metric="cosine").tolist() == [[2, 1, 0]]
    assert rank_gallery(torch.zeros(1, 1), gallery, *ids, k=3, metric="cosine").tolist() == [[0, 1, 2]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_do_not_reach_the_distances(dtype, device):
    query, gallery = (torch.randn(n, 32, device=device, dtype=dtype) * 500 for n in (30, 200))
    ids = torch.arange(30, device=device) % 6, torch.arange(200, device=device) % 6
    expected = reid_metrics(query.float(), gallery.float(), *ids)
    assert reid_metrics(query, gallery, *ids) == expected
    assert reid_metrics(query, gallery.float(), *ids) == expected
    with torch.autocast(device, dtype):
        assert reid_metrics(query.float(), gallery.float(), *ids) == expected


def test_scores_of_features_that_require_a_gradient():
    features, ids = torch.randn(12, 4, requires_grad=True), torch.arange(12) % 3
    scores = reid_metrics(features, features, ids.int(), ids)
    assert not scores.average_precision.requires_grad
    assert features.grad is None


def test_result_is_frozen_and_prints_its_scores():
    ids = torch.arange(4) % 2
    scores = reid_metrics(torch.eye(4), torch.eye(4), ids, ids, ranks=(1,))
    assert str(scores) == (
        f"ReIDMetrics(mAP={scores.mAP}, cmc={{1: 1.0}}, mINP={scores.mINP}, num_queries=4, num_skipped=0)"
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        scores.mAP = 1.0  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(scores, ReIDMetrics)


@pytest.mark.parametrize("queries", [0, 3])
@pytest.mark.parametrize("gallery", [0, 3])
def test_nothing_to_evaluate_is_an_error_and_nothing_to_rank_is_not(queries, gallery):
    inputs = (
        torch.randn(queries, 2),
        torch.randn(gallery, 2),
        torch.zeros(queries).long(),
        torch.ones(gallery).long(),
    )
    with pytest.raises(ValueError, match=f"no query has a positive in the gallery: received {queries} queries"):
        reid_metrics(*inputs)
    ranking = rank_gallery(*inputs, k=2)
    assert ranking.shape == (queries, 2)
    assert (ranking >= 0).all() == (gallery > 0 or queries == 0)


@pytest.mark.parametrize("function", [reid_metrics, rank_gallery])
def test_options_out_of_range(function):
    ids = torch.zeros(2, dtype=torch.int64)
    inputs = torch.eye(2), torch.eye(2), ids, ids
    with pytest.raises(ValueError, match="metric must be one of 'euclidean', 'cosine'; received 'manhattan'"):
        unchecked(function)(*inputs, metric="manhattan")
    with pytest.raises(ValueError, match="chunk_size must be at least 1; received 0"):
        function(*inputs, chunk_size=0)
    with pytest.raises(ValueError, match="must be given together; received only query_groups"):
        function(*inputs, query_groups=ids)
    with pytest.raises(ValueError, match="must be given together; received only gallery_groups"):
        function(*inputs, gallery_groups=ids)


def test_ranks_and_k_count_from_one():
    ids = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"ranks must be at least 1; received \(1, 0\)"):
        reid_metrics(torch.eye(2), torch.eye(2), ids, ids, ranks=(1, 0))
    with pytest.raises(ValueError, match="k must be at least 1; received 0"):
        rank_gallery(torch.eye(2), torch.eye(2), ids, ids, k=0)


@pytest.mark.parametrize("function", [reid_metrics, rank_gallery])
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e30])
def test_features_that_cannot_be_ranked(function, value):
    ids, broken = torch.zeros(3, dtype=torch.int64), torch.eye(3)
    broken[1:, 2] = value
    with pytest.raises(ValueError, match=r"query must hold finite features .*; 2 of 3 rows are not \(first: row 1\)"):
        function(broken, torch.eye(3), ids, ids)
    with pytest.raises(ValueError, match="gallery must hold finite features"):
        function(torch.eye(3), broken, ids, ids)


def test_shapes_and_dtypes_are_named():
    ids = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(TypeCheckError, match="gallery_ids"):
        reid_metrics(torch.eye(3), torch.eye(3), ids, ids[:2])
    with pytest.raises(TypeCheckError, match="query_ids"):
        reid_metrics(torch.eye(3), torch.eye(3), ids.float(), ids)
    with pytest.raises(TypeCheckError, match="gallery"):
        rank_gallery(torch.eye(3), torch.eye(4)[:3], ids, ids)
