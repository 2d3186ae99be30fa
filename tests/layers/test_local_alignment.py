"""Local alignment: against loops, against the released arrays, and by the laws it obeys."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.signal_reid.released import SAMPLERS, released_state
from reference import alignment as reference
from stmi_layers.local_alignment import LocalAlignment, local_alignment_loss
from vectors import MODALITIES, assert_equal, every, load, part, stacked

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1))
GRID = (5, 4)


def problem(
    batch: int = 3, modalities: int = 3, samples: int = 2, seed: int = 0, dim: int = 4
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, modalities, samples, dim, generator=generator, dtype=torch.float64)
    return tokens.requires_grad_(), torch.rand(batch, modalities, generator=generator) < 0.7


def layer(modalities: int = 3, **options) -> LocalAlignment:
    alignment = LocalAlignment(4, modalities, GRID, **{"kernel_size": 2, "stride": 2, **options}, dtype=torch.float64)
    for parameter in alignment.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return alignment


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    return [result.detach(), *torch.autograd.grad(result, leaves, materialize_grads=True)]


@given(SIZES, st.booleans())
def test_loss_matches_the_loops(sizes, missing):
    samples, present = problem(*sizes)
    there = present if missing else torch.ones_like(present)
    actual = local_alignment_loss(samples, present if missing else None)
    expected = reference.local_alignment_loss(samples, there)
    torch.testing.assert_close(with_gradients(actual, samples), with_gradients(expected, samples))


@given(SIZES)
def test_two_modalities_are_one_mean_squared_error(sizes):
    samples, _ = problem(sizes[0], 2, *sizes[2:])
    torch.testing.assert_close(local_alignment_loss(samples), nn.functional.mse_loss(*samples.unbind(1)))


def test_no_pair_is_zero_with_a_zero_gradient():
    for samples, present in (
        (problem(modalities=1)[0], None),
        (problem(batch=0)[0], None),
        (problem()[0], torch.eye(3, dtype=torch.bool)),
        (problem()[0], torch.zeros(3, 3, dtype=torch.bool)),
    ):
        loss, gradient = with_gradients(local_alignment_loss(samples, present), samples)
        assert loss == 0
        assert not gradient.any()


def test_equal_maps_are_aligned_from_the_start():
    alignment = LocalAlignment(4, 3, (16, 8))
    patches = torch.randn(2, 1, 128, 4).expand(2, 3, 128, 4)
    assert alignment(patches).item() < 1e-12
    assert alignment(torch.randn(2, 3, 128, 4)) > 0.1
    parameters = [layer.mix.weight for layer in alignment.sampling]
    assert parameters[0] is not parameters[1]
    alignment.reset_parameters()
    assert torch.equal(parameters[0], parameters[2])


@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e30])
def test_what_stands_in_an_absent_slot_does_not_matter(filler):
    present = torch.tensor([[True, True, False], [False, True, True], [True, False, False], [False, False, False]])
    alignment = layer()

    def found(filler: float) -> list[Tensor]:
        patches = torch.where(present[..., None, None], problem(4, samples=20)[0].detach(), filler).requires_grad_()
        return with_gradients(alignment(patches, present), [patches, *alignment.parameters()])

    expected = found(0.0)
    assert all(item.isfinite().all() for item in expected)
    assert expected[0] > 0
    torch.testing.assert_close(found(filler), expected, rtol=0, atol=0)


def test_training_moves_the_samples_to_where_the_content_is():
    """One map shows the object a cell further down: the offsets learn to follow."""
    torch.manual_seed(0)
    images = torch.randn(32, 9, 8, 4)
    for axis in (1, 2):  # smooth, so that a step in the right direction pays
        images = (images + images.roll(1, axis) + images.roll(2, axis)) / 3
    patches = torch.stack([images[:, :8], images[:, 1:]], dim=1).flatten(2, 3)
    alignment = LocalAlignment(4, 2, (8, 8), kernel_size=2, stride=2)
    optimizer = torch.optim.Adam(alignment.parameters(), lr=0.01)
    first = alignment(patches).item()
    for _ in range(60):
        optimizer.zero_grad()
        alignment(patches).backward()
        optimizer.step()
    assert alignment(patches).item() < 0.8 * first


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_half_precision_is_float32(dtype, device):
    samples = problem()[0].detach().to(device, dtype)
    actual = local_alignment_loss(samples)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual, local_alignment_loss(samples.float()))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((4, 0, (8, 8)), {}, "num_modalities must be at least 1; received 0"),
        ((4, 3, (8, 3)), {}, r"grid must have at least kernel_size=4 rows and columns; received \(8, 3\)"),
        ((0, 3, (8, 8)), {}, "dim must be at least 1; received 0"),
        ((4, 3, (8, 8)), {"points": "none"}, "points must be one of 'inside', 'clamped', 'released'; received 'none'"),
    ],
)
def test_layer_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        LocalAlignment(*arguments, **options)


@pytest.mark.parametrize("shape", [(2, 2, 20, 4), (2, 3, 21, 4), (2, 3, 20, 5)])
def test_layer_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"patches must have \(modalities, patches, dim\) of \(3, 20, 4\); received"):
        layer()(torch.zeros(shape, dtype=torch.float64))


# The released arrays


@every("signal_lam_*.npz")
def test_released_loss(path):
    arrays = load(path)
    patches = stacked(arrays, "input/patches_{}").requires_grad_()
    grid = int(arrays["meta/height"]), int(arrays["meta/width"])
    parameters = {f"alignment.{name}": value.requires_grad_() for name, value in part(arrays, "param/DAS_").items()}
    parameters = {name.replace("alignment.", "alignment.DAS_"): value for name, value in parameters.items()}
    alignment = LocalAlignment(patches.shape[-1], 3, grid, points="released", offset_channels=1, dtype=patches.dtype)

    def state() -> dict[str, Tensor]:
        return part(released_state(parameters), "local_alignment.")

    alignment.load_state_dict(state())
    for mode in ("eval", "train"):
        loss = torch.func.functional_call(alignment, state(), patches)
        assert_equal(loss.detach(), arrays[f"{mode}/loss"])
        found = torch.autograd.grad(loss, [patches, *parameters.values()])
        for index, modality in enumerate(MODALITIES):
            assert_equal(found[0][:, index], arrays[f"{mode}/grad_patches_{modality}"])
        for name, gradient in zip(parameters, found[1:], strict=True):
            assert_equal(gradient, arrays[f"{mode}/grad_param/{name.removeprefix('alignment.')}"])
    for index, (sampling, modality) in enumerate(zip(alignment.sampling, MODALITIES, strict=True)):
        samples = sampling(patches[:, index].unflatten(1, grid))
        assert_equal(samples.detach().movedim(-1, 1), arrays[f"step/sampled_{modality}"])


@every("signal_general_*.npz")
@pytest.mark.parametrize(("name", "points"), [("released", "released"), ("centred", "clamped")])
def test_loss_of_any_number_of_modalities(path, name, points):
    arrays = load(path)
    patches, present = arrays["input/patches"].requires_grad_(), arrays["present"].bool()
    grid = int(arrays["meta/height"]), int(arrays["meta/width"])
    dim, modalities = patches.shape[-1], patches.shape[1]
    alignment = LocalAlignment(dim, modalities, grid, points=points, offset_channels=1, dtype=patches.dtype)
    for index, sampling in enumerate(alignment.sampling):
        released = {f"{SAMPLERS[0]}.{key}": value for key, value in part(arrays, f"param/sampling.{index}.").items()}
        sampling.load_state_dict(part(released_state(released), "local_alignment.sampling.0."))
    loss = alignment(patches, present)
    expected = part(arrays, f"lam/{name}/")
    assert_equal(loss.detach(), expected["output"])
    (gradient,) = torch.autograd.grad(loss * expected["cotangent"], patches)
    assert_equal(gradient, expected["grad_patches"])
