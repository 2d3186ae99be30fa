"""Foreground tokens: their selection by masks, and its perturbation in training."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import reference
from stmi_layers import MaskPerturbation, perturb_background, token_foreground

sides = st.integers(1, 9)
grids = st.tuples(st.integers(1, 5), st.integers(1, 5))
# Multiples of 1/8 have exact areas in any order of summation, so that a tie at the threshold stays a tie.
eighths = st.integers(1, 8).map(lambda count: count / 8)


@st.composite
def pixel_masks(draw: st.DrawFn) -> Tensor:
    shape = (draw(st.integers(1, 2)), draw(sides), draw(sides))
    size = shape[0] * shape[1] * shape[2]
    return torch.tensor(draw(st.lists(st.booleans(), min_size=size, max_size=size))).reshape(shape)


@st.composite
def token_masks(draw: st.DrawFn) -> Tensor:
    batch, tokens = draw(st.integers(1, 3)), draw(st.integers(1, 8))
    flags = draw(st.lists(st.booleans(), min_size=batch * tokens, max_size=batch * tokens))
    return torch.tensor(flags).reshape(batch, tokens)


@given(pixel_masks(), grids, eighths, st.integers(0, 5))
def test_token_foreground_measures_areas(mask, grid, threshold, prefix_tokens):
    # Includes masks coarser than the grid, and sides that the grid does not divide.
    result = token_foreground(mask, grid, threshold=threshold, prefix_tokens=prefix_tokens)
    assert torch.equal(result, reference.token_foreground(mask, grid, threshold, prefix_tokens))


@given(pixel_masks(), grids, eighths, st.integers(0, 2**32 - 1))
def test_token_foreground_weighs_soft_masks(mask, grid, threshold, seed):
    eighth = torch.randint(0, 9, mask.shape, generator=torch.Generator().manual_seed(seed)) / 8
    expected = reference.token_foreground(eighth, grid, threshold, prefix_tokens=1)
    assert torch.equal(token_foreground(eighth, grid, threshold=threshold), expected)


@given(pixel_masks(), grids)
def test_bool_mask_is_the_soft_mask_of_zeros_and_ones(mask, grid):
    for dtype in (torch.float16, torch.float32, torch.float64):
        assert torch.equal(token_foreground(mask.to(dtype), grid), token_foreground(mask, grid))


@pytest.mark.parametrize(("covered", "expected"), [(127, False), (128, True), (129, True)])
def test_half_a_patch_is_foreground_and_a_pixel_less_is_not(device, covered, expected):
    mask = torch.zeros(1, 256, dtype=torch.bool, device=device)
    mask[:, :covered] = True
    mask = mask.reshape(1, 16, 16)
    assert token_foreground(mask, (1, 1), prefix_tokens=0).item() is expected


@pytest.mark.parametrize("tenths", range(1, 11))
def test_threshold_in_tenths_holds_despite_binary_fractions(tenths):
    # 0.7 * 10 and the like are not whole numbers in binary.
    mask = (torch.arange(10) < tenths).reshape(1, 2, 5)
    assert token_foreground(mask, (1, 1), threshold=tenths / 10, prefix_tokens=0).item() is True


def test_area_of_large_masks_is_exact(device):
    mask = torch.zeros(1, 3001, 2001, dtype=torch.bool, device=device)
    mask[:, :, :1000] = True
    mask[:, :1500, 1000] = True
    assert not token_foreground(mask, (1, 1), prefix_tokens=0).item()  # half a pixel short of half the area
    mask[:, 1500, 1000] = True
    assert token_foreground(mask, (1, 1), prefix_tokens=0).item()


def test_autocast_does_not_touch_the_areas(device):
    mask = torch.rand(2, 515, 389, device=device) < 0.5
    expected = token_foreground(mask, (16, 8))
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(token_foreground(mask, (16, 8)), expected)


@given(pixel_masks(), grids, eighths, eighths)
def test_higher_threshold_keeps_fewer_tokens(mask, grid, one, other):
    strict = token_foreground(mask, grid, threshold=max(one, other))
    assert not (strict & ~token_foreground(mask, grid, threshold=min(one, other))).any()


@given(pixel_masks(), grids, eighths, st.integers(0, 2**32 - 1))
def test_larger_mask_keeps_more_tokens(mask, grid, threshold, seed):
    larger = mask | (torch.rand(mask.shape, generator=torch.Generator().manual_seed(seed)) < 0.5)
    lost = token_foreground(mask, grid, threshold=threshold) & ~token_foreground(larger, grid, threshold=threshold)
    assert not lost.any()


@given(pixel_masks(), grids, eighths)
def test_flips_and_transposition_commute_with_the_token_grid(mask, grid, threshold):
    def tokens(pixels: Tensor, rows: int, columns: int) -> Tensor:
        flat = token_foreground(pixels, (rows, columns), threshold=threshold, prefix_tokens=0)
        return flat.unflatten(1, (rows, columns))

    original = tokens(mask, *grid)
    for axes in ((1,), (2,), (1, 2)):
        assert torch.equal(tokens(mask.flip(axes), *grid), original.flip(axes))
    assert torch.equal(tokens(mask.mT, grid[1], grid[0]), original.mT)


def test_counts_of_255_are_refused_where_nothing_waits_for_them():
    mask = torch.zeros(2, 4, 4)
    mask[1, 0, 0] = 1.1  # what resampling makes of 1
    assert token_foreground(mask, (2, 2)).shape == (2, 5)
    mask[1, 0, 0] = 255
    with pytest.raises(ValueError, match=r"mask must lie in \[0, 1\]; received values up to 255.*mask > 127"):
        token_foreground(mask, (2, 2))
    over_samples = torch.func.vmap(lambda one: token_foreground(one[None], (2, 2))[0])(mask)
    assert over_samples.shape == (2, 5)
    compiled = torch.compile(lambda one: token_foreground(one, (2, 2)), backend="eager", fullgraph=True)
    assert torch.equal(compiled(mask), over_samples)
    with FakeTensorMode() as mode:
        assert token_foreground(mode.from_tensor(mask), (2, 2)).shape == (2, 5)


@given(pixel_masks(), grids, eighths, st.integers(1, 4), st.integers(1, 4))
def test_resolution_of_the_mask_does_not_matter(mask, grid, threshold, rows, columns):
    finer = mask.repeat_interleave(rows, dim=1).repeat_interleave(columns, dim=2)
    expected = token_foreground(mask, grid, threshold=threshold)
    assert torch.equal(token_foreground(finer, grid, threshold=threshold), expected)


@pytest.mark.parametrize("prefix_tokens", [0, 1, 5])
def test_prefix_is_foreground_even_without_a_mask(device, prefix_tokens):
    mask = torch.zeros(2, 4, 4, dtype=torch.bool, device=device)
    result = token_foreground(mask, (2, 2), prefix_tokens=prefix_tokens)
    assert result.shape == (2, prefix_tokens + 4)
    assert result[:, :prefix_tokens].all()
    assert not result[:, prefix_tokens:].any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (2, 2), "threshold": 0.0}, r"threshold must lie in \(0, 1\]; received 0.0"),
        ({"grid": (2, 2), "threshold": 1.5}, r"threshold must lie in \(0, 1\]; received 1.5"),
        ({"grid": (2, 2), "threshold": float("nan")}, r"threshold must lie in \(0, 1\]; received nan"),
        ({"grid": (0, 2)}, r"grid must have at least one row and one column of patches; received \(0, 2\)"),
        ({"grid": (2, 2), "prefix_tokens": -1}, "prefix_tokens must not be negative; received -1"),
    ],
)
def test_token_foreground_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        token_foreground(torch.ones(1, 4, 4, dtype=torch.bool), **options)


@given(token_masks(), st.floats(0, 1))
def test_perturbation_never_loses_foreground(foreground, p):
    before = foreground.clone()
    perturbed = perturb_background(foreground, p)
    assert perturbed[foreground].all()
    assert torch.equal(foreground, before)


@given(token_masks())
def test_perturbation_at_zero_and_one(foreground):
    assert torch.equal(perturb_background(foreground, 0.0), foreground)
    assert perturb_background(foreground, 1.0).all()


@pytest.mark.parametrize("p", [0.01, 0.3, 0.9])
def test_perturbation_rate(device, p):
    foreground = torch.rand(64, 512, device=device) < 0.5
    background = (~foreground).sum().item()
    flips = (perturb_background(foreground, p) & ~foreground).sum().item()
    deviation = (background * p * (1 - p)) ** 0.5
    assert abs(flips - background * p) < 5 * deviation


def test_perturbation_is_drawn_per_token(device):
    flips = perturb_background(torch.zeros(40, 40, dtype=torch.bool, device=device), 0.5)
    assert len(flips.unique(dim=0)) == 40
    assert len(flips.unique(dim=1).mT) == 40


def test_perturbation_is_reproducible_from_a_generator(device):
    foreground = torch.zeros(4, 50, dtype=torch.bool, device=device)

    def draw(seed: int) -> Tensor:
        return perturb_background(foreground, 0.5, generator=torch.Generator(device).manual_seed(seed))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    state = torch.get_rng_state()
    draw(3)
    assert torch.equal(torch.get_rng_state(), state)


def test_mask_perturbation_acts_in_training_only(device):
    foreground = torch.zeros(4, 50, dtype=torch.bool, device=device)
    perturbation = MaskPerturbation(0.5)
    first, second = perturbation(foreground), perturbation(foreground)
    assert first.any()
    assert not torch.equal(first, second)
    assert torch.equal(perturbation.eval()(foreground), foreground)
    assert torch.equal(MaskPerturbation(0.0)(foreground), foreground)


@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_perturbation_refuses_what_is_no_probability(p):
    message = rf"p must be a probability in \[0, 1\]; received {p}"
    with pytest.raises(ValueError, match=message):
        perturb_background(torch.ones(1, 2, dtype=torch.bool), p)
    with pytest.raises(ValueError, match=message):
        MaskPerturbation(p)


def test_a_mask_of_another_dtype_or_shape_is_named():
    for mask in (torch.ones(1, 4, 4, dtype=torch.int64), torch.ones(4, 4)):
        with pytest.raises(TypeCheckError, match="parameter 'mask'"):
            token_foreground(mask, (2, 2))
