"""Global-patch reduction: against loops, against the released arrays, and by the laws it obeys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from examples.demo.released import released_state
from laws import assert_inert, randomise, with_gradients
from reference.pooling import reduce_global_patches
from stmi_layers import GlobalPatchReduction, join_patch_mean
from vectors import every, load, part


def layer(modalities: int = 3, dim: int = 4, **options) -> GlobalPatchReduction:
    return randomise(GlobalPatchReduction(dim, modalities, dtype=torch.float64, **options))


def inputs(batch: int = 2, modalities: int = 3, patches: int = 5, dim: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    globals_ = torch.randn(batch, modalities, dim, generator=generator, dtype=torch.float64)
    tokens = torch.randn(batch, modalities, patches, dim, generator=generator, dtype=torch.float64)
    keep = torch.rand(batch, modalities, patches, generator=generator) < 0.6
    present = torch.rand(batch, modalities, generator=generator) < 0.6
    return globals_.requires_grad_(), tokens.requires_grad_(), keep, present


examples = st.builds(
    inputs,
    batch=st.integers(1, 2),
    modalities=st.integers(1, 4),
    patches=st.integers(1, 5),
    seed=st.integers(0, 2**32 - 1),
)


@given(examples, st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_reduction_matches_the_loops(example, norm, quick, masked, missing):
    globals_, patches, keep, present = example
    reduction = layer(globals_.shape[1], norm=norm, activation="quick_gelu" if quick else "none")
    state = dict(reduction.named_parameters())
    everything = torch.ones_like(keep), torch.ones_like(present)
    read = keep if masked else everything[0], present if missing else everything[1]
    expected = reduce_global_patches(globals_, patches, *read, state, quick)
    actual = reduction(globals_, patches, keep if masked else None, present if missing else None)
    leaves = [globals_, patches, *state.values()]
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected + 0 * globals_, leaves))


@every("demo_pife_*.npz")
def test_reduction_gives_the_released_numbers(path):
    arrays = load(path, torch.float64)
    names = ("rgb", "nir", "tir")
    globals_ = torch.stack([arrays[f"in.{name}_global"] for name in names], dim=1).requires_grad_()
    patches = torch.stack([arrays[f"in.{name}_patches"] for name in names], dim=1).requires_grad_()
    reduction = GlobalPatchReduction(globals_.shape[2], 3, dtype=torch.float64)
    state = released_state(part(arrays, "param."))
    reduction.load_state_dict({name.removeprefix("pooling."): value for name, value in state.items()})
    for mode in ("eval", "train"):
        actual = reduction.train(mode == "train")(globals_, patches)
        for m, name in enumerate(names):
            torch.testing.assert_close(actual[:, m], arrays[f"{mode}.out.{name}"], rtol=1e-10, atol=1e-10)
        cotangent = torch.stack([arrays[f"{mode}.cot.{name}"] for name in names], dim=1)
        gradients = torch.autograd.grad(actual, [globals_, patches], cotangent)
        for gradient, kind in zip(gradients, ("global", "patches"), strict=True):
            for m, name in enumerate(names):
                expected = arrays[f"{mode}.grad.in.{name}_{kind}"]
                torch.testing.assert_close(gradient[:, m], expected, rtol=1e-10, atol=1e-10)


@given(examples, st.sampled_from([float("nan"), float("inf"), 1e300]))
def test_what_is_left_out_is_inert(example, garbage):
    globals_, patches, keep, present = example
    reduction = layer(globals_.shape[1])
    disturbed = torch.where(present[..., None], globals_, garbage)
    read = (keep & present[..., None])[..., None]
    assert_inert(
        reduction,
        (globals_, patches, keep, present),
        (disturbed, torch.where(read, patches, garbage), keep, present),
    )
    hidden = torch.where(present[..., None, None], patches, garbage)
    for mask in ({"keep": torch.ones_like(keep)}, {}):
        assert_inert(reduction, (globals_, patches), (disturbed, hidden), present=present, **mask)
    assert not reduction(disturbed, hidden, keep, present)[~present].any()


@given(examples)
def test_keeping_all_is_no_mask_and_dropping_is_removing(example):
    globals_, patches, keep, present = example
    reduction = layer(globals_.shape[1])
    expected = reduction(globals_, patches)
    everything = torch.ones_like(keep), torch.ones_like(present)
    torch.testing.assert_close(reduction(globals_, patches, *everything), expected)
    fewer = torch.zeros_like(keep)
    fewer[:, :, : patches.shape[2] // 2] = True
    removed = reduction(globals_, patches[:, :, : patches.shape[2] // 2])
    torch.testing.assert_close(reduction(globals_, patches, fewer), removed)


def test_modalities_do_not_meet():
    globals_, patches, *_ = inputs()
    reduction = layer()
    of_first = torch.autograd.grad(reduction(globals_, patches)[:, 0].sum(), [globals_, patches])
    assert all(gradient[:, 0].any() and not gradient[:, 1:].any() for gradient in of_first)


def test_reduction_gradcheck():
    globals_, patches, keep, present = inputs(modalities=2, patches=3, dim=2)
    present[0, 1] = False
    assert torch.autograd.gradcheck(layer(2, 2), (globals_, patches, keep, present))


def test_bfloat16_means_do_not_stop_at_256():
    patches = torch.ones(1, 1, 4096, 2, dtype=torch.bfloat16)
    for keep in (None, torch.ones(1, 1, 4096, dtype=torch.bool)):
        assert torch.equal(join_patch_mean(patches[:, :, 0], patches, keep=keep), torch.ones(1, 1, 4).bfloat16())


def test_bfloat16_norm_gradients_count_all_samples():
    reduction = GlobalPatchReduction(2, 1, dtype=torch.bfloat16)
    torch.nn.init.ones_(reduction.weight)
    output = reduction(torch.zeros(1024, 1, 2).bfloat16(), torch.ones(1024, 1, 1, 2).bfloat16())
    (gradient,) = torch.autograd.grad(output.float().sum(), [reduction.norm_weight])
    exact = GlobalPatchReduction(2, 1).double()
    exact.load_state_dict(reduction.state_dict())
    (expected,) = torch.autograd.grad(
        exact(torch.zeros(1024, 1, 2).double(), torch.ones(1024, 1, 1, 2).double()).sum(), [exact.norm_weight]
    )
    torch.testing.assert_close(gradient.double(), expected, rtol=0.02, atol=0)


def test_empty_batch_and_initial_values():
    reduction = GlobalPatchReduction(16, 2)
    assert reduction(torch.zeros(0, 2, 16), torch.zeros(0, 2, 5, 16)).shape == (0, 2, 16)
    assert reduction.norm_weight.eq(1).all()
    assert not reduction.norm_bias.any()
    for parameter in (reduction.weight, reduction.bias):
        assert 0.9 * 32**-0.5 < parameter.abs().max() <= 32**-0.5


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((0, 3), {}, "dim must be at least 1; received 0"),
        ((8, 0), {}, "num_modalities must be at least 1; received 0"),
        ((8, 3), {"activation": "relu"}, "activation must be one of 'quick_gelu', 'none'; received 'relu'"),
    ],
)
def test_reduction_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        GlobalPatchReduction(*arguments, **options)


def test_reduction_refuses_other_shapes():
    reduction = GlobalPatchReduction(8, 3)
    message = r"globals must have num_modalities=3 rows of width dim=8; received shape \(2, 2, 8\)"
    with pytest.raises(ValueError, match=message):
        reduction(torch.randn(2, 2, 8), torch.randn(2, 2, 5, 8))
    with pytest.raises(TypeCheckError, match="patches"):
        reduction(torch.randn(2, 3, 8), torch.randn(2, 3, 5, 6))
