"""Segmentation-guided pooling: against loops, against torch's attention, and by its laws."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from reference import segtext as reference
from stmi_layers.multiscale import SegmentationGuidedPooling, mask_pooled_cells

GRID = (4, 2)


def layer(**options) -> SegmentationGuidedPooling:
    options = {"scales": (1, 2), "num_heads": 2, "dtype": torch.float64} | options
    pooling = SegmentationGuidedPooling(4, GRID, **options)
    for parameter in pooling.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return pooling


def inputs(batch: int = 2, modalities: int = 2, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    queries = torch.randn(batch, 3, 4, generator=generator, dtype=torch.float64)
    patches = torch.randn(batch, modalities, 8, 4, generator=generator, dtype=torch.float64)
    mask = torch.rand(batch, modalities, 8, generator=generator, dtype=torch.float64)
    present = torch.rand(batch, modalities, generator=generator) < 0.6
    return queries.requires_grad_(), patches.requires_grad_(), mask, present


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("kind", ["soft", "hard", "none"])
@pytest.mark.parametrize("seed", [0, 1])
def test_pooling_matches_the_loops(kind, gaps, seed):
    queries, patches, mask, present = inputs(seed=seed)
    mask = {"soft": mask, "hard": mask > 0.6, "none": None}[kind]
    present = present if gaps else None
    pooling = layer()
    leaves = [queries, patches, *pooling.parameters()]
    state = dict(pooling.named_parameters())
    expected = reference.guided_attention(queries, patches, mask, present, GRID, (1, 2), 2, state)
    actual = pooling(queries, patches, mask, present)
    torch.testing.assert_close(actual, expected)
    weights = torch.linspace(-1, 2, actual.numel(), dtype=torch.float64).reshape(actual.shape)
    found = (torch.autograd.grad((item * weights).sum(), leaves, materialize_grads=True) for item in (actual, expected))
    torch.testing.assert_close(*found)


def test_one_scale_without_a_mask_is_attention():
    queries, patches, *_ = inputs(modalities=1)
    pooling = layer(scales=(1,))
    oracle = nn.MultiheadAttention(4, 2, batch_first=True, dtype=torch.float64)
    oracle.load_state_dict({name: value for name, value in pooling.state_dict().items() if name != "log_beta"})
    expected = queries + oracle(queries, patches[:, 0], patches[:, 0])[0]
    torch.testing.assert_close(pooling(queries, patches), expected)


def test_full_and_empty_masks_are_no_mask():
    queries, patches, mask, _ = inputs()
    pooling = layer()
    expected = pooling(queries, patches)
    torch.testing.assert_close(pooling(queries, patches, torch.ones_like(mask)), expected)
    torch.testing.assert_close(pooling(queries, patches, torch.zeros_like(mask)), expected)


@pytest.mark.parametrize("beta", [0.01, 0.5, 1.0])
def test_beta_is_the_exponent_of_the_share(beta):
    """Keys of zero leave the mask alone to decide: a cell weighs its share of foreground to the power of beta."""
    pooling = layer(scales=(1,), num_heads=1)
    one, zero = torch.eye(4, dtype=torch.float64), torch.zeros(4, 4, dtype=torch.float64)
    with torch.no_grad():
        pooling.in_proj_weight.copy_(torch.cat([one, zero, one]))
        pooling.out_proj.weight.copy_(one)
        for bias in (pooling.in_proj_bias, pooling.out_proj.bias):
            bias.zero_()
        pooling.log_beta.fill_(torch.tensor(beta).log())
    queries, patches, mask, _ = inputs(modalities=1)
    weights = (mask[:, 0] + 1e-4) ** beta
    expected = (weights[..., None] * patches[:, 0]).sum(dim=1) / weights.sum(dim=1, keepdim=True)
    torch.testing.assert_close(pooling(queries, patches, mask) - queries, expected[:, None].expand(-1, 3, -1))


@given(st.permutations([0, 1, 2]), st.integers(0, 2**32 - 1))
def test_modalities_in_any_order(order, seed):
    queries, patches, mask, present = inputs(modalities=3, seed=seed)
    pooling = layer()
    shuffled = pooling(queries, patches[:, order], mask[:, order], present[:, order])
    torch.testing.assert_close(shuffled, pooling(queries, patches, mask, present))
    there = present.any(dim=1)
    assert torch.equal(pooling(queries, patches, mask, present)[~there], queries[~there])


@pytest.mark.parametrize("garbage", [0.0, 1e300, float("inf"), float("nan")])
def test_what_is_absent_is_inert(garbage):
    queries, patches, mask, _ = inputs(batch=3)
    present = torch.tensor([[True, False], [False, False], [True, True]])
    pooling = layer()
    expected = pooling(queries, patches, mask, present)
    broken = torch.where(present[..., None, None], patches, garbage).detach().requires_grad_()
    actual = pooling(queries, broken, torch.where(present[..., None], mask, garbage), present)
    assert torch.equal(actual, expected)
    weights = list(pooling.parameters())
    found = torch.autograd.grad(actual.square().sum(), [broken, *weights])
    torch.testing.assert_close(found[1:], torch.autograd.grad(expected.square().sum(), weights), rtol=0, atol=0)
    assert not found[0][~present].any()
    assert found[0].isfinite().all()


def test_cells_by_hand():
    patches, mask = torch.arange(8.0).reshape(1, 8, 1), torch.tensor([[1.0, 0, 0, 0, 0, 0, 0, 0.5]])
    cells, shares = mask_pooled_cells(patches, mask, (4, 2), 2)
    torch.testing.assert_close(cells.flatten(), torch.tensor([0.0, 7.0]), atol=0.01, rtol=0)
    assert shares.tolist() == [[0.25, 0.125]]
    plain, full = mask_pooled_cells(patches, None, (4, 2), 2)
    torch.testing.assert_close(plain.flatten(), torch.tensor([1.5, 5.5]))
    assert full.tolist() == [[1.0, 1.0]]
    single, _ = mask_pooled_cells(patches, mask, (4, 2), 1)
    torch.testing.assert_close(single, patches)


def test_gradcheck():
    queries, patches, mask, _ = inputs()
    present = torch.tensor([[True, False], [True, True]])
    assert torch.autograd.gradcheck(layer(), (queries, patches, mask.requires_grad_(), present))


def test_beta_starts_where_told():
    pooling = SegmentationGuidedPooling(8, GRID, scales=(1,), num_heads=4, beta=0.3)
    torch.testing.assert_close(pooling.log_beta.exp(), torch.full((4,), 0.3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim; received dim=8, num_heads=3"),
        ({"scales": ()}, r"scales must hold at least one number; received \(\)"),
        ({"scales": (0,)}, r"scale must be at least 1 and divide the grid \(4, 2\); received 0"),
        ({"scales": (4,)}, r"scale must be at least 1 and divide the grid \(4, 2\); received 4"),
        ({"beta": 0.0}, "beta must be a finite number above 0; received 0.0"),
        ({"beta": float("nan")}, "beta must be a finite number above 0; received nan"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        SegmentationGuidedPooling(8, GRID, **({"scales": (1,), "num_heads": 2} | options))


def test_other_grids_are_refused():
    pooling = SegmentationGuidedPooling(8, GRID, scales=(1,))
    with pytest.raises(ValueError, match=r"patches must fill the grid \(4, 2\); received 9 patches"):
        pooling(torch.randn(1, 1, 8), torch.randn(1, 1, 9, 8))
