"""Exact search against brute force: order, distances and ties."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from case import unchecked
from stmi_layers import nearest, rank_gallery
from stmi_layers.kernels.ranking import smallest


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@given(
    st.integers(0, 5), st.integers(0, 30), st.integers(1, 40), st.integers(1, 9), st.booleans(), st.integers(0, 9999)
)
def test_brute_force(metric, queries, gallery, k, chunk_size, whole, seed):
    generator = torch.Generator().manual_seed(seed)

    def some(rows: int) -> torch.Tensor:
        if whole:  # with many ties, and far from the origin
            return torch.randint(-3, 4, (rows, 2), generator=generator).double() + 1000 * (metric == "euclidean")
        return torch.randn(rows, 4, generator=generator, dtype=torch.float64)

    query, stored = some(queries), some(gallery)
    indices, distances = nearest(query, stored, k, metric=metric, chunk_size=chunk_size)
    assert indices.shape == distances.shape == (queries, min(k, gallery))
    if metric == "cosine":
        query, stored = F.normalize(query), F.normalize(stored)
    exact = (query[:, None] - stored).square().sum(dim=2)
    expected, order = exact.sort(dim=1, stable=True)
    torch.testing.assert_close(distances, expected[:, :k], rtol=0, atol=1e-12)
    if whole and metric == "euclidean":
        assert torch.equal(indices, order[:, :k])
    torch.testing.assert_close(exact.gather(1, indices), distances, rtol=0, atol=1e-12)
    assert all(len(set(row)) == len(row) for row in indices.tolist())


@pytest.mark.parametrize("step", [1.0, 0.25, 3.0, 2.0**-20])
@pytest.mark.parametrize("offset", [0.0, 64.0])
def test_equal_distances_are_listed_by_index(step, offset):
    """Features on a grid have exact distances in float32; a centre off the grid would order ties by rounding."""
    gallery = torch.randint(-3, 4, (200, 3)).float() * step + offset * step
    query = torch.randint(-3, 4, (20, 3)).float() * step + offset * step
    exact = (query.double()[:, None] - gallery.double()).square().sum(dim=2)
    expected, order = exact.sort(dim=1, stable=True)
    indices, distances = nearest(query, gallery, 200)
    assert torch.equal(indices, order)
    assert torch.equal(distances.double(), expected)


def test_a_copy_is_at_distance_zero_and_the_order_is_that_of_the_metrics():
    gallery = torch.randn(300, 32) + 100
    indices, distances = nearest(gallery[:40], gallery, 7)
    assert torch.equal(indices[:, 0], torch.arange(40))
    assert torch.equal(distances[:, 0], torch.zeros(40))
    ids = torch.zeros(300, dtype=torch.int64)
    assert torch.equal(indices, rank_gallery(gallery[:40], gallery, ids[:40], ids, k=7))


def test_half_precision_is_compared_in_float32():
    gallery = torch.randn(50, 8).bfloat16()
    indices, distances = nearest(gallery[:3], gallery, 5)
    assert distances.dtype == torch.float32
    wide = nearest(gallery[:3].float(), gallery.float(), 5)
    assert torch.equal(indices, wide[0])
    assert torch.equal(distances, wide[1])


def test_refused():
    gallery = torch.randn(4, 3)
    with pytest.raises(ValueError, match="k must be at least 1; received 0"):
        nearest(gallery, gallery, 0)
    with pytest.raises(ValueError, match="chunk_size must be at least 1; received 0"):
        nearest(gallery, gallery, chunk_size=0)
    with pytest.raises(ValueError, match="metric must be one of 'euclidean', 'cosine'; received 'dot'"):
        unchecked(nearest)(gallery, gallery, metric="dot")
    with pytest.raises(ValueError, match=r"gallery must hold finite features .*; 1 of 4 rows are not \(first: row 2\)"):
        nearest(gallery, gallery.index_fill(0, torch.tensor([2]), math.nan))
    with pytest.raises(TypeCheckError):
        nearest(gallery, torch.randn(4, 5))


@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 12), st.sampled_from([2, 9, 10_000]), st.integers(0, 99))
def test_smallest_numbers_by_groups(columns, rows, count, values, seed):
    """Where it gives an answer it is that of a stable sort; it gives none where a tie leaves a choice."""
    count = min(count, columns)
    numbers = torch.randint(values, (rows, columns), generator=torch.Generator().manual_seed(seed)).float()
    found = smallest(numbers, count)
    ordered = numbers.sort(dim=1, stable=True)
    if found is None:
        assert count < columns
        assert (ordered.values[:, count - 1] == ordered.values[:, count]).any()
    else:
        assert torch.equal(found[1], ordered.indices[:, :count].sort(dim=1).values)
        assert torch.equal(found[0], numbers.gather(1, found[1]))
