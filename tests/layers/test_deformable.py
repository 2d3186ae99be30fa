"""Deformable sampling: against loops, torch's own sampler and the released arrays, and by the laws it obeys."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.signal_reid.released import released_sampler
from reference import deformable as reference
from stmi_layers.deformable import DeformableSampling, deformable_positions, reference_positions, sample_tokens
from vectors import assert_equal, every, load, part

READINGS = ("inside", "clamped", "released")
GRIDS = st.tuples(st.integers(1, 6), st.integers(1, 6))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer(dim: int = 3, **options) -> DeformableSampling:
    """With every parameter at random, so that none can hide behind its initial value."""
    sampling = DeformableSampling(dim, **options, dtype=torch.float64)
    for parameter in sampling.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return sampling


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves, materialize_grads=True)]


# Sampling


@given(GRIDS, st.integers(0, 2**32 - 1))
def test_sampling_is_that_of_torch(grid, seed):
    rows, columns = grid
    tokens = random(2, rows, columns, 3, seed=seed).requires_grad_()
    share = torch.rand(2, 4, 5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    positions = (share * torch.tensor([rows - 1.0, columns - 1.0])).requires_grad_()
    # In units of torch, whose cells here end half a cell beyond the outer tokens.
    normalised = (2 * positions + 1) / torch.tensor([rows, columns]) - 1
    expected = F.grid_sample(tokens.movedim(-1, 1), normalised.flip(-1), padding_mode="border", align_corners=False)
    leaves = [tokens] if 1 in grid else [tokens, positions]  # torch moves a position off a grid of one row
    actual = sample_tokens(tokens, positions)
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected.movedim(1, -1), leaves))


def test_tokens_are_met_exactly_and_positions_beyond_the_grid_are_on_its_border():
    tokens = random(1, 4, 3, 2)
    rows, columns = torch.meshgrid(torch.arange(4.0), torch.arange(3.0), indexing="ij")
    exact = torch.stack([rows, columns], dim=-1)[None]
    assert torch.equal(sample_tokens(tokens, exact), tokens)
    beyond = torch.tensor([[-5.0, 1.0], [99.0, -0.5]]).view(1, 1, 2, 2)
    assert torch.equal(sample_tokens(tokens, beyond)[0, 0], torch.stack([tokens[0, 0, 1], tokens[0, 3, 0]]))


def test_sampling_gradcheck():
    tokens, positions = random(1, 3, 4, 2).requires_grad_(), torch.tensor([[0.3, 1.6], [1.7, 2.2]]).double()
    assert torch.autograd.gradcheck(sample_tokens, (tokens, positions.view(1, 1, 2, 2).requires_grad_()))
    flat = random(1, 1, 4, 2).requires_grad_()
    place = torch.tensor([0.0, 1.6]).double().view(1, 1, 1, 2).requires_grad_()
    assert not with_gradients(sample_tokens(flat, place), [place])[1][..., 0].any()  # one row: nowhere to move


def test_a_position_on_a_token_has_a_gradient():
    """Zero offsets put an odd window's sample onto a token: it must not be stuck there."""
    place = torch.full((1, 1, 1, 2), 1.0, dtype=torch.float64, requires_grad=True)
    assert with_gradients(sample_tokens(random(1, 3, 3, 1), place), [place])[1].all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sampling_in_half_precision(dtype, device):
    tokens, positions = random(2, 16, 8, 4).to(device, dtype), 7 * torch.rand(2, 3, 3, 2, device=device)
    actual = sample_tokens(tokens, positions)
    assert actual.dtype == dtype
    assert torch.equal(actual, sample_tokens(tokens.float(), positions).to(dtype))
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(sample_tokens(tokens.float(), positions), sample_tokens(tokens.float(), positions.float()))


# Positions


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 9), st.integers(0, 9))
def test_reference_is_the_centre_of_each_window(kernel_size, stride, more_rows, more_columns):
    grid = kernel_size + more_rows, kernel_size + more_columns
    rows, columns = torch.meshgrid(torch.arange(float(grid[0])), torch.arange(float(grid[1])), indexing="ij")
    means = F.avg_pool2d(torch.stack([rows, columns])[None], kernel_size, stride)[0].movedim(0, -1)
    points = means.shape[0], means.shape[1]
    actual = reference_positions(grid, points, kernel_size=kernel_size, stride=stride)
    torch.testing.assert_close(actual, means)
    assert (actual >= 0).all()
    assert (actual <= torch.tensor(grid) - 1).all()


def test_released_reference_leaves_the_grid():
    actual = reference_positions((16, 8), (4, 2), released=True)
    assert actual[:, 0, 0].tolist() == [2.5, 7.5, 12.5, 17.5]
    assert actual[0, :, 1].tolist() == [3.5, 10.5]


@given(GRIDS, st.floats(0, 20), st.floats(0, 20), st.integers(0, 2**32 - 1))
def test_bounded_positions_stay_inside_and_keep_their_order(grid, reach_rows, reach_columns, seed):
    generator = torch.Generator().manual_seed(seed)
    last = torch.tensor(grid, dtype=torch.float64) - 1
    reach = (reach_rows, reach_columns)
    start = torch.rand(1, 3, 2, generator=generator, dtype=torch.float64) * last
    offsets = (2 * torch.rand(4, 1, 3, 2, generator=generator, dtype=torch.float64) - 1) * torch.tensor(reach)
    positions = deformable_positions(offsets, start, grid, reach=reach)
    assert (positions >= 0).all()
    assert (positions <= last).all()
    assert ((positions - start).abs() <= offsets.abs() + 1e-12).all()
    assert ((positions - start) * offsets >= 0).all()
    fits = (start - torch.tensor(reach) >= 0) & (start + torch.tensor(reach) <= last)
    torch.testing.assert_close(positions[fits.expand_as(positions)], (start + offsets)[fits.expand_as(positions)])


def test_bounded_positions_have_a_gradient_where_cut_off_ones_have_none():
    offsets = torch.tensor([-3.0, 4.0], dtype=torch.float64).view(1, 1, 1, 2).requires_grad_()
    start = torch.tensor([1.0, 2.0], dtype=torch.float64).view(1, 1, 2)
    bounded = deformable_positions(offsets, start, (4, 4), reach=(5.0, 5.0))
    assert torch.autograd.grad(bounded.sum(), offsets)[0].flatten().tolist() == [0.2, 0.2]
    cut = deformable_positions(offsets, start, (4, 4))
    assert cut.flatten().tolist() == [0.0, 3.0]
    assert not torch.autograd.grad(cut.sum(), offsets)[0].any()


# The layer


@pytest.mark.parametrize("points", READINGS)
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(("grid", "kernel_size", "stride"), [((5, 6), 2, 2), ((4, 5), 3, 1), ((8, 9), 4, 4)])
def test_layer_matches_the_loops(points, channels, grid, kernel_size, stride):
    options = {"kernel_size": kernel_size, "stride": stride, "offset_range": 1.5}
    sampling = layer(**options, offset_channels=channels, points=points)
    tokens = random(2, *grid, 3).requires_grad_()
    state = dict(sampling.named_parameters())
    expected = torch.cat([item.flatten() for item in reference.sampling(tokens, state, **options, points=points)])
    actual = torch.cat([item.flatten() for item in (sampling(tokens), sampling.positions(tokens))])
    leaves = [tokens, *state.values()]
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves))


@pytest.mark.parametrize("points", ["inside", "clamped"])
@pytest.mark.parametrize("grid", [(4, 4), (4, 16), (7, 5), (16, 4)])
def test_a_single_row_or_column_of_points_works(grid, points):
    sampling = layer(points=points)
    tokens = random(2, *grid, 3).requires_grad_()
    positions = sampling.positions(tokens)
    assert positions.isfinite().all()
    assert (positions <= torch.tensor(grid) - 1).all()
    found = with_gradients(sampling(tokens), [tokens, *sampling.parameters()])
    assert all(item.isfinite().all() for item in found)
    assert found[-1].any()


@pytest.mark.parametrize("grid", [(16, 8), (8, 16), (8, 8)])
def test_every_point_keeps_its_gradient_inside_and_loses_it_when_cut_off(grid):
    """Offsets near saturation: the released positions beyond the grid are dead, ours are not."""
    tokens = random(1, *grid, 3)

    def alive(points: str) -> Tensor:
        sampling = layer(points=points)
        nn.init.constant_(sampling.offset.weight, 2.0)
        nn.init.constant_(sampling.windows.bias, 1.0)
        places = sampling.positions(tokens)
        rows = [
            torch.autograd.grad(place, sampling.offset.weight, retain_graph=True)[0].any() for place in places.flatten()
        ]
        return torch.stack(rows)

    assert alive("inside").all()
    assert not alive("released").all()


@pytest.mark.parametrize("grid", [(8, 8), (16, 8), (4, 12)])
def test_zero_offsets_sample_the_reference(grid):
    sampling, tokens = layer(), random(2, *grid, 3)
    nn.init.zeros_(sampling.offset.weight)
    expected = F.avg_pool2d(tokens[:, 1:-1, 1:-1].movedim(-1, 1), 2, 4).movedim(1, -1)  # the four central tokens
    torch.testing.assert_close(sampling(tokens), expected)


@given(st.integers(0, 2**32 - 1))
def test_flipping_the_map_and_the_windows_flips_the_samples(seed):
    sampling, flipped = layer(), layer()
    flipped.load_state_dict(sampling.state_dict())
    with torch.no_grad():
        flipped.windows.weight.copy_(sampling.windows.weight.flip(2, 3))
        flipped.offset.weight.neg_()  # what was down is up
    tokens = random(2, 8, 8, 3, seed=seed)
    torch.testing.assert_close(flipped(tokens.flip(1, 2)), sampling(tokens).flip(1, 2))


def test_second_derivative():
    sampling = layer(2, kernel_size=2, stride=2)
    tokens = random(1, 4, 4, 2).requires_grad_()
    assert torch.autograd.gradcheck(sampling, tokens)
    assert torch.autograd.gradgradcheck(sampling, tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim must be at least 1; received 0"),
        ({"stride": 0}, "stride must be at least 1; received 0"),
        ({"offset_range": 0.0}, "offset_range must be above 0; received 0.0"),
        ({"offset_range": math.nan}, "offset_range must be above 0; received nan"),
        ({"points": "outside"}, "points must be one of 'inside', 'clamped', 'released'; received 'outside'"),
        ({"offset_channels": 3}, "offset_channels must be 1 or 2; received 3"),
    ],
)
def test_layer_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        DeformableSampling(**{"dim": 4, **options})


def test_layer_refuses_other_maps():
    with pytest.raises(ValueError, match=r"tokens must have width dim=8; received shape \(1, 8, 8, 3\)"):
        DeformableSampling(8)(torch.zeros(1, 8, 8, 3))
    with pytest.raises(ValueError, match="tokens must have at least kernel_size=4 rows and columns; received 8 x 3"):
        DeformableSampling(8)(torch.zeros(1, 8, 3, 8))
    with pytest.raises(ValueError, match=r"at least 2 rows and 2 columns .*; received 2 x 1\. Take the centred"):
        DeformableSampling(8, points="released")(torch.zeros(1, 8, 4, 8))


# The released arrays


@every("signal_das_*.npz")
def test_released_sampling(path):
    arrays = load(path)
    tokens = arrays["input/map"].movedim(1, -1).contiguous().requires_grad_()
    parameters = {name: value.requires_grad_() for name, value in part(arrays, "param/").items()}
    options = {"kernel_size": int(arrays["meta/kernel"]), "stride": int(arrays["meta/stride"])}
    sampling = DeformableSampling(
        tokens.shape[-1],
        **options,
        offset_range=float(arrays["meta/offset_range_factor"]),
        offset_channels=1,
        points="released",
        dtype=tokens.dtype,
    )
    state = released_sampler(parameters)
    sampling.load_state_dict(state)
    rows, columns = tokens.shape[1:3]
    cells = torch.tensor([rows - 1, columns - 1], dtype=tokens.dtype) / 2
    assert_equal(sampling.positions(tokens).detach(), (arrays["step/position_yx"] + 1) * cells)
    for mode in ("eval", "train"):
        samples = torch.func.functional_call(sampling, released_sampler(parameters), tokens).movedim(-1, 1)
        assert_equal(samples.detach(), arrays[f"{mode}/sampled"])
        leaves = [tokens, *parameters.values()]
        found = torch.autograd.grad((samples * arrays["input/cotangent"]).sum(), leaves)
        assert_equal(found[0].movedim(-1, 1), arrays[f"{mode}/grad_map"])
        for name, gradient in zip(parameters, found[1:], strict=True):
            assert_equal(gradient, arrays[f"{mode}/grad_param/{name}"])


def test_released_sampler_needs_all_parameters():
    with pytest.raises(ValueError, match=r"missing proj_q\.bias, conv_offset"):
        released_sampler({"proj_q.weight": torch.zeros(2, 2, 1, 1)})
