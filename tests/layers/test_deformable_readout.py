"""The deformable readout: against loops, against torch's grid_sample, against the released arrays, and by its laws."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor, nn

from examples.idea.released import max_offset, released_state
from reference import deformable_readout as reference
from stmi_layers.deformable_readout import DeformableReadout, sampled_cross_attention
from vectors import assert_equal, every, load, meta, part

FORMS = ("shared", "separate", "diagonal")


def layer(dim: int = 4, modalities: int = 2, grid: tuple[int, int] = (5, 6), **options) -> DeformableReadout:
    """In float64, with every parameter at random and large enough to move samples over the border."""
    readout = DeformableReadout(dim, modalities, grid, dtype=torch.float64, **options)
    for parameter in readout.parameters():
        nn.init.uniform_(parameter, -0.8, 0.8)
    return readout


def inputs(readout: DeformableReadout, batch: int = 2, queries: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    patches = readout.num_modalities, readout.grid[0] * readout.grid[1], readout.dim
    shapes = (batch, queries, readout.dim), (batch, *patches)
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return first.requires_grad_(), second.requires_grad_()


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves, materialize_grads=True)]


def expected_positions(readout: DeformableReadout, patches: Tensor) -> Tensor:
    """Places of all samples from the loops, (batch sets samples 2)."""
    first = (readout.kernel - 1) / 2 if readout.reference == "centred" else readout.kernel // 2
    batches = []
    for sample in patches:
        shared = readout.offsets == "shared"
        maps = [torch.cat(list(sample), dim=1)] if shared else list(sample)
        sets = []
        for network, tokens in zip(readout.networks, maps, strict=True):
            raw = reference.raw_offsets(tokens, dict(network.named_parameters()), readout.grid, readout.stride)
            places = []
            for i, row in enumerate(raw):
                for j, offset in enumerate(row):
                    y = first + i * readout.stride + readout.max_offset[0] * offset[0].tanh()
                    x = first + j * readout.stride + readout.max_offset[1] * offset[-1].tanh()
                    places.append(torch.stack([y, x]))
            sets.append(torch.stack(places))
        batches.append(torch.stack(sets))
    return torch.stack(batches)


@pytest.mark.parametrize("gaps", [False, True])
@pytest.mark.parametrize("offsets", FORMS)
def test_readout_matches_the_loops(offsets, gaps):
    readout = layer(offsets=offsets, num_heads=2, max_offset=(2.0, 3.0), kernel=3, stride=2)
    queries, patches = inputs(readout)
    present = torch.tensor([[True, False], [False, False]]) if gaps else None
    seen = patches if present is None else patches * present[..., None, None]
    places = expected_positions(readout, seen)
    attention = (readout.in_proj_weight, readout.in_proj_bias, readout.out_proj.weight, readout.out_proj.bias, 2)
    sets = places.expand(-1, 2, -1, -1)
    read = reference.sampled_cross_attention(queries, patches, sets, readout.grid, attention, present)
    leaves = [queries, patches, *readout.parameters()]
    torch.testing.assert_close(readout.positions(seen).flatten(2, 3), places)
    actual = with_gradients(readout(queries, patches, present), leaves)
    torch.testing.assert_close(actual, with_gradients(queries + read, leaves))


@given(st.integers(1, 4), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_samples_are_those_of_grid_sample(height, width, seed):
    generator = torch.Generator().manual_seed(seed)
    patches = torch.randn(1, 2, height * width, 3, generator=generator, dtype=torch.float64)
    positions = 8 * torch.rand(1, 2, 4, 2, generator=generator, dtype=torch.float64) - 2
    identity, bias = torch.eye(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
    arguments = ((height, width), identity.repeat(3, 1), bias.repeat(3), identity, bias)
    for s in range(4):  # one sample at a time is read as it is: the mean over modalities
        actual = sampled_cross_attention(0 * patches[:, 0, :1], patches, positions[:, :, s : s + 1], *arguments)
        unit = 2 * positions[0, :, s] / torch.tensor([max(height - 1, 1), max(width - 1, 1)]) - 1
        maps = patches[0].transpose(1, 2).unflatten(2, (height, width))
        options = {"align_corners": True, "padding_mode": "border"}
        expected = F.grid_sample(maps, unit.flip(-1)[:, None, None], **options).flatten(1).mean(dim=0)
        torch.testing.assert_close(actual[0, 0], expected)


@pytest.mark.parametrize(("offsets", "reference_points"), [("shared", "centred"), ("separate", "shifted")])
def test_without_offsets_the_reference_points_are_read(offsets, reference_points):
    readout = layer(offsets=offsets, reference=reference_points, grid=(8, 6))
    for network in readout.networks:
        nn.init.zeros_(network.point.weight)
    queries, patches = inputs(readout)
    first = 1.5 if reference_points == "centred" else 2.0
    rows, columns = first + 2 * torch.arange(3.0), first + 2 * torch.arange(2.0)
    expected = torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).double()
    actual = readout.positions(patches)
    assert torch.equal(actual, expected.expand_as(actual))
    if reference_points == "shifted":  # on patches: their rows and columns, gathered
        places = (actual[0, 0, ..., 0] * 6 + actual[0, 0, ..., 1]).long().flatten()
        parameters = (readout.in_proj_weight, readout.in_proj_bias, readout.out_proj.weight, readout.out_proj.bias)
        oracle = nn.MultiheadAttention(4, 1, batch_first=True, dtype=torch.float64)
        for parameter, value in zip(oracle.parameters(), parameters, strict=True):
            parameter.data.copy_(value.data)
        tokens = patches[:, :, places].flatten(1, 2)
        torch.testing.assert_close(readout(queries, patches), queries + oracle(queries, tokens, tokens)[0])


def test_an_offset_on_a_patch_still_learns():
    """Shifted reference points stand on patches, where a symmetric hat would have no gradient."""
    readout = layer(reference="shifted", grid=(8, 6))
    nn.init.zeros_(readout.networks[0].point.weight)
    queries, patches = inputs(readout)
    (gradient,) = torch.autograd.grad(readout(queries, patches).square().sum(), readout.networks[0].point.weight)
    assert gradient.all()


def test_a_sample_beyond_the_border_gets_no_gradient():
    patches = torch.randn(1, 1, 6, 2, dtype=torch.float64)
    positions = torch.tensor([[[[-0.5, 1.0], [0.5, 2.5], [0.5, 0.5]]]], dtype=torch.float64, requires_grad=True)
    one = torch.eye(2, dtype=torch.float64)
    query = torch.randn(1, 1, 2, dtype=torch.float64)
    read = sampled_cross_attention(query, patches, positions, (2, 3), one.repeat(3, 1), None, one, None)
    (gradient,) = torch.autograd.grad(read.square().sum(), positions)
    assert [value == 0 for value in gradient.flatten().tolist()] == [True, False, False, True, False, False]


@pytest.mark.parametrize("offsets", FORMS)
def test_readout_gradcheck(offsets):
    readout = layer(dim=2, grid=(4, 5), offsets=offsets, max_offset=(1.0, 1.0))
    queries, patches = inputs(readout, batch=2, queries=2)
    present = torch.tensor([[True, True], [False, True]])
    assert torch.autograd.gradcheck(readout, (queries, patches, present))


@pytest.mark.parametrize("offsets", FORMS)
@pytest.mark.parametrize("garbage", [0.0, 1e300, float("inf"), float("nan")])
def test_what_is_missing_is_inert(offsets, garbage):
    readout = layer(modalities=3, offsets=offsets)
    queries, patches = inputs(readout, batch=3, queries=6)
    present = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    asked = present.repeat(1, 2)
    expected = readout(queries, patches, present, asked)
    leaves = [
        torch.where(asked[..., None], queries, garbage).detach().requires_grad_(),
        torch.where(present[..., None, None], patches, garbage).detach().requires_grad_(),
    ]
    actual = readout(*leaves, present, asked)
    assert torch.equal(actual, expected)
    assert not actual[~asked].any()
    weights = [*leaves, *readout.parameters()]
    found = torch.autograd.grad(actual.square().sum(), weights)
    torch.testing.assert_close(found[2:], torch.autograd.grad(expected.square().sum(), weights[2:]), rtol=0, atol=0)
    assert not found[0][~asked].any()
    assert not found[1][~present].any()
    assert all(gradient.isfinite().all() for gradient in found)


def test_all_present_is_none_and_nothing_present_returns_the_queries():
    readout = layer()
    queries, patches = inputs(readout)
    everything, nothing = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)
    torch.testing.assert_close(readout(queries, patches, everything), readout(queries, patches))
    assert torch.equal(readout(queries, patches, nothing), queries)


@pytest.mark.parametrize("offsets", ["separate", "diagonal"])
def test_an_absent_modality_of_separate_networks_is_a_removed_one(offsets):
    readout = layer(modalities=3, offsets=offsets)
    queries, patches = inputs(readout)
    smaller = layer(modalities=2, offsets=offsets)
    smaller.networks = nn.ModuleList([readout.networks[0], readout.networks[2]])
    for name in ("in_proj_weight", "in_proj_bias", "out_proj"):
        setattr(smaller, name, getattr(readout, name))
    present = torch.tensor([[True, False, True]] * 2)
    torch.testing.assert_close(readout(queries, patches, present), smaller(queries, patches[:, [0, 2]]))


@given(st.permutations(range(4)))
def test_queries_do_not_see_each_other(order):
    readout = layer()
    queries, patches = inputs(readout, queries=4)
    expected = readout(queries, patches)
    torch.testing.assert_close(readout(queries[:, order], patches), expected[:, order])
    torch.testing.assert_close(readout(queries[:, :1], patches), expected[:, :1])


def test_more_queries_than_a_head_is_wide():
    readout = layer(num_heads=4)
    queries, patches = inputs(readout, queries=7)
    alone = torch.cat([readout(queries[:, [q]], patches) for q in range(7)], dim=1)
    torch.testing.assert_close(readout(queries, patches), alone)


def test_an_empty_batch():
    readout = layer()
    assert readout(torch.zeros(0, 3, 4).double(), torch.zeros(0, 2, 30, 4).double()).shape == (0, 3, 4)


def test_one_row_of_samples():
    """The released code divides by the number of sample rows less one."""
    readout = layer(grid=(4, 8))
    queries, patches = inputs(readout)
    assert readout.positions(patches).shape == (2, 1, 1, 3, 2)
    assert readout(queries, patches).isfinite().all()
    assert max_offset(5, (4, 8)) == (7.5, 8.75)


@pytest.mark.parametrize("mode", ["eval", "train"])
@every("idea_cda_*.npz")
def test_released_arrays(path, mode):
    arrays = load(path, torch.float64)
    settings = meta(path)
    grid, sizes = tuple(settings["grid"]), {name: settings[name] for name in ("kernel", "stride")}
    readout = DeformableReadout(
        settings["D"],
        settings["M"],
        grid,
        max_offset=max_offset(settings["offset_factor"], grid, **sizes),
        offsets="shared" if settings["share"] else "diagonal",
        reference="shifted",
        num_heads=settings["heads"],
        dtype=torch.float64,
        **sizes,
    ).train(mode == "train")
    readout.load_state_dict(released_state(part(arrays, "param.")))
    queries = arrays["in.queries"].requires_grad_()
    names = ("rgb", "nir", "tir")
    leaves = [arrays[f"in.{name}_patches"].requires_grad_() for name in names]
    patches = torch.stack(leaves, dim=1)
    # The release keeps its range in float32, exact where the numbers of samples less one are powers of two.
    tolerance = 1e-12 if all(((side - 4) // 2) & ((side - 4) // 2 - 1) == 0 for side in grid) else 1e-6
    sides = torch.tensor([max(side - 1, 1) for side in grid])
    for m, name in enumerate(names):
        positions = readout.positions(patches)
        unit = 2 * positions[:, min(m, positions.shape[1] - 1)] / sides - 1
        assert_equal(unit.clamp(-1, 1), arrays[f"{mode}.positions.{name}"], tolerance)
    output = readout(queries, patches)
    loss = torch.zeros((), dtype=torch.float64)
    for kind, found in zip(("visual", "textual"), output.split(settings["M"], dim=1), strict=False):
        assert_equal(found.flatten(1), arrays[f"{mode}.out.{kind}"], tolerance)
        loss = loss + (found.flatten(1) * arrays[f"{mode}.cot.{kind}"]).sum()
    gradients = torch.autograd.grad(loss, [queries, *leaves])
    expected = [arrays[f"{mode}.grad.in.{name}"] for name in ("queries", *(f"{name}_patches" for name in names))]
    for gradient, right in zip(gradients, expected, strict=True):
        assert_equal(gradient, right, tolerance)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_close(dtype, device):
    readout = DeformableReadout(16, 2, (8, 8), device=device)
    queries, patches = torch.randn(2, 4, 16, device=device), torch.randn(2, 2, 64, 16, device=device)
    half = copy.deepcopy(readout).to(dtype)
    actual = half(queries.to(dtype), patches.to(dtype))
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), readout(queries, patches), rtol=0.05, atol=0.05)
    with torch.autocast(device, dtype=torch.bfloat16):
        torch.testing.assert_close(readout(queries, patches), readout(queries, patches), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim; received dim=8, num_heads=3"),
        ({"num_modalities": 0}, "num_modalities must be at least 1; received 0"),
        ({"kernel": 0}, "kernel must be at least 1; received 0"),
        ({"stride": 0}, "stride must be at least 1; received 0"),
        ({"grid": (3, 8)}, r"grid must have at least kernel=4 rows and columns; received \(3, 8\)"),
        ({"max_offset": (1.0, -1.0)}, r"max_offset must be at least 0 patches; received \(1.0, -1.0\)"),
        ({"max_offset": (float("nan"), 1.0)}, "max_offset must be at least 0 patches"),
        ({"offsets": "joint"}, "offsets must be one of 'shared', 'separate', 'diagonal'; received 'joint'"),
        ({"reference": "corner"}, "reference must be one of 'centred', 'shifted'; received 'corner'"),
    ],
)
def test_readout_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        DeformableReadout(**({"dim": 8, "num_modalities": 2, "grid": (8, 4)} | options))


def test_readout_refuses_other_shapes():
    readout = DeformableReadout(8, 2, (8, 4))
    queries, patches = torch.randn(2, 3, 8), torch.randn(2, 2, 32, 8)
    with pytest.raises(ValueError, match=r"queries must have width dim=8; received shape \(2, 3, 6\)"):
        readout(queries[..., :6], patches[..., :6])
    with pytest.raises(ValueError, match=r"patches must have num_modalities=2, fill \(8, 4\) and have dim=8; received"):
        readout(queries, patches[:, :, :31])
    with pytest.raises(TypeCheckError, match="present"):
        readout(queries, patches, torch.ones(2, 3, dtype=torch.bool))
    one = torch.eye(8)
    arguments = (one.repeat(3, 1), None, one, None)
    with pytest.raises(ValueError, match=r"patches must fill the grid \(4, 4\); received 32 patches"):
        sampled_cross_attention(queries, patches, torch.zeros(2, 2, 1, 2), (4, 4), *arguments)
