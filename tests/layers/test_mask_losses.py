"""Losses of masks: against loops and torch, and by their laws."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from reference import segtext as reference
from stmi_layers.mask_losses import mask_coupling_loss, mask_loss


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


@given(st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 2**32 - 1))
def test_mask_loss_matches_the_loops(batch, side, soft, seed):
    logits = normal(batch, side, 2, seed=seed)
    share = torch.rand(batch, side, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = share if soft else share > 0.5
    actual = mask_loss(logits, mask, bce_weight=1.5, dice_weight=0.7, smoothing=0.3)
    expected = reference.mask_loss(logits, mask, 1.5, 0.7, 0.3)
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, logits), torch.autograd.grad(expected, logits))


def test_weights_choose_the_parts():
    logits, mask = normal(2, 3, 4), torch.rand(2, 3, 4).double() > 0.5
    bce = F.binary_cross_entropy_with_logits(logits, mask.double())
    torch.testing.assert_close(mask_loss(logits, mask, bce_weight=1.0, dice_weight=0.0), bce)
    dice = mask_loss(logits, mask, bce_weight=0.0, dice_weight=1.0)
    torch.testing.assert_close(mask_loss(logits, mask), 2 * bce + 0.5 * dice)


@pytest.mark.parametrize("filled", [True, False])
def test_a_right_mask_costs_nothing_and_extreme_logits_stay_finite(filled):
    mask = torch.full((1, 2, 2), filled)
    logits = torch.full((1, 2, 2), 1e4 if filled else -1e4, requires_grad=True)
    loss = mask_loss(logits, mask)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    wrong = mask_loss(-logits, mask)
    assert wrong > 1e4
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss + wrong, logits))


@pytest.mark.parametrize("garbage", [1e300, float("nan")])
def test_samples_that_take_no_part_are_inert(garbage):
    present = torch.tensor([True, False])
    logits, mask = normal(2, 3, 4), torch.rand(2, 3, 4, dtype=torch.float64)
    broken = [torch.where(present[:, None, None], item, garbage).detach() for item in (logits, mask)]
    loss = mask_loss(broken[0].requires_grad_(), broken[1], present=present)
    torch.testing.assert_close(loss, mask_loss(logits[:1], mask[:1]))
    assert torch.autograd.grad(loss, broken[0])[0].isfinite().all()

    tokens, patches, shares = normal(2, 2, 3), normal(2, 5, 3, seed=1), torch.rand(2, 5, dtype=torch.float64)
    parts = [torch.where(present[:, None, None], item, garbage).detach().requires_grad_() for item in (tokens, patches)]
    weights = torch.where(present[:, None], shares, garbage)
    loss = mask_coupling_loss(*parts, weights, present=present)
    torch.testing.assert_close(loss, mask_coupling_loss(tokens[:1], patches[:1], shares[:1]))
    found = torch.autograd.grad(loss, parts)
    assert all(gradient.isfinite().all() and not gradient[1].any() for gradient in found)
    nobody = torch.zeros(2, dtype=torch.bool)
    assert mask_loss(broken[0], broken[1], present=nobody) == 0
    assert mask_coupling_loss(*parts, weights, present=nobody) == 0


@given(st.integers(1, 3), st.integers(1, 4), st.booleans(), st.integers(0, 2**32 - 1))
def test_coupling_matches_the_loops(batch, patches, soft, seed):
    generator = torch.Generator().manual_seed(seed)
    share = torch.rand(batch, patches, generator=generator, dtype=torch.float64)
    mask = share if soft else share > 0.6
    leaves = [normal(batch, 2, 3, seed=seed), normal(batch, patches, 3, seed=seed + 1)]
    actual, expected = mask_coupling_loss(*leaves, mask), reference.mask_coupling(*leaves, mask)
    torch.testing.assert_close(actual, expected)
    found = torch.autograd.grad(actual, leaves, materialize_grads=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves, materialize_grads=True))


def test_background_and_the_size_of_the_mask_do_not_matter():
    tokens, patches = normal(2, 1, 3), normal(2, 4, 3, seed=1)
    mask = torch.tensor([[True, True, False, False]] * 2)
    expected = mask_coupling_loss(tokens, patches, mask)
    changed = torch.where(mask[..., None], patches, 100.0)
    torch.testing.assert_close(mask_coupling_loss(tokens, changed, mask), expected)
    torch.testing.assert_close(mask_coupling_loss(tokens, patches, 0.01 * mask.double()), expected)


def test_gradcheck():
    mask = torch.rand(2, 4).double()
    assert torch.autograd.gradcheck(
        lambda *leaves: mask_coupling_loss(*leaves, mask), (normal(2, 2, 3), normal(2, 4, 3))
    )
    assert torch.autograd.gradcheck(lambda logits: mask_loss(logits, mask[:, None]), (normal(2, 1, 4),))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_gives_float32(dtype):
    logits, mask = normal(2, 8, 8).float(), torch.rand(2, 8, 8) > 0.5
    loss = mask_loss(logits.to(dtype), mask)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, mask_loss(logits, mask), rtol=0.01, atol=0.01)
    assert mask_coupling_loss(logits.to(dtype), logits.to(dtype), mask[:, 0]).dtype == torch.float32


@pytest.mark.parametrize("options", [{"bce_weight": -1.0}, {"dice_weight": -1.0}, {"smoothing": 0.0}])
def test_refused(options):
    with pytest.raises(ValueError, match="dice_weight must be at least 0, smoothing above 0; received bce_weight="):
        mask_loss(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2), **options)
