"""Background consistency: against loops, against the released arrays, and by the laws it obeys."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from reference import editor as reference
from stmi_layers import background_consistency
from vectors import every, load


def problem(batch: int, modalities: int, patches: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, modalities, patches, 3, generator=generator, dtype=torch.float64)
    keep = torch.rand(batch, patches, generator=generator) < 0.5
    return tokens.requires_grad_(), keep, torch.rand(batch, modalities, generator=generator) < 0.6


@given(st.integers(2, 4), st.integers(1, 3), st.integers(0, 2**32 - 1), st.booleans())
def test_loss_matches_the_loops(modalities, patches, seed, complete):
    tokens, keep, present = problem(3, modalities, patches, seed)
    present = present | complete
    actual = background_consistency(tokens, keep, None if complete else present)
    expected = reference.background_consistency(tokens, keep, present) + 0 * tokens.sum()
    torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(torch.autograd.grad(actual, tokens), torch.autograd.grad(expected, tokens))
    broken = torch.where(present[..., None, None], tokens.detach(), torch.nan).requires_grad_()
    again = background_consistency(broken, keep, present)
    assert torch.equal(again, actual) or complete
    (gradient,) = torch.autograd.grad(again, broken)
    assert gradient.isfinite().all()
    assert not gradient[~present].any()
    assert not gradient.transpose(1, 2)[keep].any()


@every("editor_sfts_*.npz")
def test_released_arrays(path):
    found = load(path)
    given_names = [name for name in ("rgb", "nir", "tir") if f"in.features.{name}" in found]
    patches = torch.stack([found[f"in.features.{name}"][:, 1:] for name in given_names], dim=1).double()
    loss = background_consistency(patches, found["eval.out.mask"])
    torch.testing.assert_close(loss, found["train.out.bcc_loss"], rtol=0, atol=1e-10)


@every("editor_sfts_*.npz")
def test_gradients_of_the_released_arrays(path):
    found = load(path)
    names = [name for name in ("rgb", "nir", "tir") if f"in.features.{name}" in found]
    leaves = [found[f"in.features.{name}"].double().requires_grad_() for name in names]
    keep = found["train.out.mask"]
    loss = background_consistency(torch.stack([leaf[:, 1:] for leaf in leaves], dim=1), keep)
    total = loss * found["train.cot.bcc_loss"]
    everything = torch.cat([torch.ones(len(keep), 1, dtype=torch.bool), keep], dim=1)[..., None]
    for name, leaf in zip(names, leaves, strict=True):
        total = total + (torch.where(everything, leaf, 0.0) * found[f"train.cot.{name}"]).sum()
    expected = [found[f"train.grad.in.features.{name}"] for name in names]
    torch.testing.assert_close(list(torch.autograd.grad(total, leaves)), expected, rtol=0, atol=1e-10)


def test_equal_background_costs_nothing_and_the_foreground_is_free():
    tokens, keep, _ = problem(2, 3, 5, 0)
    same = torch.where(keep[:, None, :, None], tokens, tokens[:, :1])
    assert background_consistency(same, keep) == 0
    assert background_consistency(tokens, torch.ones_like(keep)) == 0


def test_nothing_to_compare_is_zero_with_a_gradient():
    tokens, keep, _ = problem(2, 2, 3, 0)
    single = tokens[:, :1]
    for loss in (
        background_consistency(single, keep),
        background_consistency(tokens, keep, torch.tensor([[True, False]] * 2)),
        background_consistency(tokens[:0], keep[:0]),
    ):
        assert loss == 0
        assert not torch.autograd.grad(loss, tokens, retain_graph=True)[0].any()


def test_half_precision_gives_float32():
    tokens, keep = torch.full((1, 2, 4, 3), 300.0).half(), torch.zeros(1, 4, dtype=torch.bool)
    tokens[:, 1] = -300
    loss = background_consistency(tokens, keep)
    assert loss.dtype == torch.float32
    assert loss == 360000


def test_compiles():
    tokens, keep, present = problem(3, 3, 4, 1)
    compiled = torch.compile(background_consistency, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(tokens, keep, present), background_consistency(tokens, keep, present))
