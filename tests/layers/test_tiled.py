"""Tiled attention against the float64 specification: any cut into tiles, extreme inputs, every transform of torch."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

import reference
from attention_problems import (
    LAYOUTS,
    NAMES,
    assert_equal,
    plain_strength_gradient,
    problem,
    widen,
    with_gradients,
)
from benchmarks.runner import peak_memory, threads
from stmi_layers import SegmentationModulatedAttention, modulated_attention
from stmi_layers.kernels import merged, tiles
from stmi_layers.kernels.sides import prepare


@pytest.fixture(params=[1, tiles.TILE], ids=["long", "short"])
def both_forms(request, monkeypatch):
    """One token's logits fill a tile, or those of a whole sample fit into one."""
    monkeypatch.setattr(tiles, "TILE", request.param)


either_form = pytest.mark.usefixtures("both_forms")


@given(
    tokens=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    strengths=st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)),
    tile=st.integers(1, 400),
    batch=st.integers(1, 3),
    heads=st.integers(1, 7),
    threads=st.integers(1, 9),
    per_head=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_any_cut_into_tiles(tile, tokens, share, strengths, batch, heads, threads, per_head, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE", tile)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        assert_equal(
            "tiled", problem(tokens, share, strengths=strengths, batch=batch, heads=heads, per_head=per_head, seed=seed)
        )


@given(
    heads=st.integers(1, 40),
    rows=st.integers(1, 60),
    tokens=st.integers(1, 600),
    tile=st.integers(1, 20_000),
    threads=st.integers(1, 64),
)
def test_tiles_cover_every_row_once_and_fit_their_buffer(heads, rows, tokens, tile, threads):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "TILE", tile)
        patch.setattr(torch, "get_num_threads", lambda: threads)
        cells = torch.zeros(heads, rows, dtype=torch.int64)
        room = len(tiles.new_buffer(torch.empty(rows, heads, 1), tokens))
        for head, row in tiles.cut(heads, rows, tokens):
            cells[head, row] += 1
            assert 0 < cells[head, row].numel() * tokens <= room
    assert (cells == 1).all()


def test_equations_loop_by_loop():
    inputs = problem(30, batch=1, heads=1, head_dim=2)
    expected = reference.modulated_attention(*inputs)
    torch.testing.assert_close(modulated_attention(*inputs, implementation="tiled"), expected, rtol=1e-9, atol=1e-9)


@either_form
def test_gradcheck():
    query, key, value, foreground, alpha, beta = problem(7, batch=1, head_dim=3, per_head=True)

    def attend(*learned: Tensor) -> Tensor:
        return modulated_attention(*learned[:3], foreground, *learned[3:], implementation="tiled")

    assert torch.autograd.gradcheck(attend, [item.requires_grad_() for item in (query, key, value, alpha, beta)])


@either_form
@pytest.mark.parametrize(("dtype", "rounding"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision(dtype, rounding):
    inputs = problem(90, dtype=dtype, head_dim=32)
    actual, expected = with_gradients("tiled", inputs), with_gradients("specification", inputs)
    for name, one, other in zip(NAMES, actual, expected, strict=True):
        assert one.dtype == dtype
        assert (one.double() - other).abs().max() <= 4 * rounding * other.abs().max(), name


@either_form
@pytest.mark.parametrize("products", [False, True], ids=["float32", "bfloat16"])
def test_half_precision_errs_no_more_than_plain_attention(products, monkeypatch):
    monkeypatch.setattr(merged, "_multiplies_bfloat16", lambda: products)
    inputs = problem(300, dtype=torch.bfloat16, head_dim=64, strengths=(0.1, 0.2))
    wide = widen(inputs)

    def error(result: Tensor, truth: Tensor) -> float:
        return (result.double() - truth).abs().mean().item()

    ours = error(modulated_attention(*inputs, implementation="tiled"), modulated_attention(*wide))
    plain = error(F.scaled_dot_product_attention(*inputs[:3]), F.scaled_dot_product_attention(*wide[:3]))
    assert ours <= 1.5 * plain


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("strengths", [(0.3, 0.6), (1.0, 1.0), (1.3, -0.2)])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_products_in_bfloat16(share, strengths, per_head, monkeypatch):
    """Plain attention over parts of the keys, merged, for strengths of all kinds.

    The gradient of a strength is a sum of terms of both signs, in plain attention too, whose error is the yardstick.
    """
    monkeypatch.setattr(merged, "_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(tiles, "TILE", 2000)
    ours, plain = torch.zeros(2, 2, dtype=torch.float64)
    for seed in range(8):  # the error of one sum may be small by chance
        query, *rest = problem(
            70, share, strengths=strengths, per_head=per_head, dtype=torch.bfloat16, head_dim=32, seed=seed
        )
        inputs = [query * 3, *rest]
        wide = widen(inputs)
        assert merged.is_fast(query)
        actual, expected = with_gradients("tiled", inputs), with_gradients("specification", wide)
        for name, one, other in zip(NAMES[:4], actual, expected, strict=False):
            assert (one.double() - other).abs().max() <= 2**-6 * other.abs().max().clamp(min=1), name
        for index in (0, 1):
            of_plain, exact = (plain_strength_gradient(*each[:3], each[4 + index]) for each in (inputs, wide))
            ours[index] += (actual[4 + index] - expected[4 + index]).square().sum()
            plain[index] += (of_plain - exact).square().sum()
    assert (ours.sqrt() <= 1.5 * plain.sqrt()).all(), (ours, plain)


@either_form
@pytest.mark.parametrize("strengths", [(0.3, 0.6), (1.0, 1.0), (1.5, -0.5)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_logits_of_ten_thousand(strengths, share):
    """float32 rounds a logit of 1e4 by 5e-4; the result and its gradients differ by a small multiple of that."""
    query, key, *rest = problem(80, share, strengths=strengths, dtype=torch.float32)
    largest = (query @ key.mT).abs().max() / math.sqrt(query.shape[-1])
    inputs = [query * (1e4 / largest).sqrt(), key * (1e4 / largest).sqrt(), *rest]
    actual = modulated_attention(*inputs, implementation="tiled")
    expected = with_gradients("specification", inputs)[0]
    torch.testing.assert_close(actual.double(), expected, rtol=0, atol=2e-2)
    assert all(gradient.isfinite().all() for gradient in with_gradients("tiled", inputs))


@either_form
def test_float16_logits_above_its_range():
    inputs = problem(80, dtype=torch.float16)
    inputs[0], inputs[1] = inputs[0] * 60, inputs[1] * 60
    assert (inputs[0].double() @ inputs[1].double().mT).abs().max() > torch.finfo(torch.float16).max / 8
    assert all(item.isfinite().all() for item in with_gradients("tiled", inputs))


@either_form
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_last_axis_need_not_be_dense(layout, dtype, compiled):
    """Convolutional projections give such keys; torch's kernel, called by its name, would misread them in silence."""
    torch._dynamo.reset()
    leaves = [item.requires_grad_(item.is_floating_point()) for item in problem(70, dtype=dtype)]
    learned = [leaf for leaf in leaves if leaf.requires_grad]

    def run(implementation: str) -> list[Tensor]:
        def attend(*inputs: Tensor) -> Tensor:
            return modulated_attention(*map(LAYOUTS[layout], inputs[:3]), *inputs[3:], implementation=implementation)

        if compiled and implementation == "tiled":
            attend = torch.compile(attend, fullgraph=True, backend="aot_eager")
        result = attend(*leaves)
        return [result.detach(), *torch.autograd.grad(result.sin().sum(), learned)]

    tolerance = 1e-9 if dtype is torch.float64 else 3e-2
    for name, one, other in zip(NAMES, run("tiled"), run("dense"), strict=True):
        assert (one - other).abs().max() <= tolerance * other.abs().max().clamp(min=1), name


@either_form
@pytest.mark.parametrize("of_strengths", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("of_tokens", [torch.float64, torch.float32, torch.bfloat16])
def test_strengths_of_another_dtype(of_tokens, of_strengths):
    *vectors, foreground, alpha, beta = problem(70, dtype=of_tokens)
    inputs = [*vectors, foreground, alpha.to(of_strengths), beta.to(of_strengths)]
    result, *gradients = with_gradients("tiled", inputs)
    assert [item.dtype for item in (result, *gradients)] == [of_tokens] * 4 + [of_strengths] * 2
    expected = modulated_attention(*inputs, implementation="dense")
    torch.testing.assert_close(result, expected, rtol=0, atol=3e-2 if of_tokens is torch.bfloat16 else 1e-5)


@either_form
def test_tied_extrema_share_the_gradient_evenly():
    query, key, *rest = problem(66, batch=1)
    key[:, :, 1::2] = key[:, :, ::2]
    assert_equal("tiled", [query, key, *rest])


@either_form
def test_equal_rows():
    query, key, *rest = problem(20)
    inputs = [torch.zeros_like(query), key, *rest]
    assert all(item.isfinite().all() for item in with_gradients("tiled", inputs))


@either_form
def test_empty_batch():
    inputs = problem(9, batch=0)
    result, *gradients = with_gradients("tiled", inputs)
    assert result.shape == inputs[2].shape
    assert [gradient.abs().sum() for gradient in gradients] == [0.0] * 5


def test_no_tensor_of_tokens_by_tokens():
    tokens = 1500
    inputs = problem(tokens, batch=1, dtype=torch.float32)
    leaves = [item.requires_grad_(item.is_floating_point()) for item in inputs]
    with torch.profiler.profile(profile_memory=True) as profile:
        modulated_attention(*leaves, implementation="tiled").sum().backward()
    largest = max(event.self_cpu_memory_usage for event in profile.events() or [])
    assert 0 < largest <= 4 * tiles.TILE < 4 * tokens**2 / 4


@pytest.mark.slow
@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize(("tokens", "batch"), [(129, 32), (577, 4), (2305, 1)])
def test_memory_is_close_to_that_of_plain_attention(tokens, batch, count, backward):
    inputs = problem(tokens, 1 / 3, batch=batch, heads=12, head_dim=64, dtype=torch.float32)
    query, key, value, *_ = (item.requires_grad_(backward and item.is_floating_point()) for item in inputs)

    def peak(attend: Callable[[], Tensor]) -> float:
        def call() -> tuple[Tensor, ...]:
            result = attend()
            return (result, *torch.autograd.grad(result.sum(), (query, key, value))) if backward else (result,)

        return peak_memory(call, "cpu")[1]

    with threads(count):
        plain = peak(lambda: F.scaled_dot_product_attention(query, key, value))
        assert 0 < peak(lambda: modulated_attention(*inputs, implementation="tiled")) <= 1.5 * plain


@either_form
def test_a_gradient_that_is_one_number_expanded():
    leaves = [item.requires_grad_(item.is_floating_point()) for item in problem(30)]
    learned = [leaf for leaf in leaves if leaf.is_floating_point()]
    actual, expected = (
        torch.autograd.grad(modulated_attention(*leaves, implementation=form).sum(), learned)
        for form in ("tiled", "dense")
    )
    torch.testing.assert_close(actual, expected)


@either_form
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck of torch 2.15
def test_operators_are_registered_soundly():
    inputs = [item.requires_grad_(item.is_floating_point()) for item in problem(9)]
    torch.library.opcheck(torch.ops.stmi_layers.tiled_attention.default, (*inputs, 0.3))


def test_compiled_with_gradients():
    torch._dynamo.reset()
    inputs = problem(12)
    compiled = torch.compile(modulated_attention, fullgraph=True, backend="aot_eager")
    leaves = [item.clone().requires_grad_(item.is_floating_point()) for item in inputs]
    result = compiled(*leaves)
    gradients = torch.autograd.grad(result.sin().sum(), [leaf for leaf in leaves if leaf.requires_grad])
    again = [item.clone().requires_grad_(item.is_floating_point()) for item in inputs]
    expected = modulated_attention(*again, implementation="dense")
    torch.testing.assert_close(result, expected)
    expected = torch.autograd.grad(expected.sin().sum(), [leaf for leaf in again if leaf.requires_grad])
    torch.testing.assert_close(gradients, expected)


def ran(call) -> str:
    """The implementation that a call chose."""

    class Seen(TorchDispatchMode):
        tiled = False

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.tiled |= "tiled" in str(func)
            return func(*args, **(kwargs or {}))

    with Seen() as seen:
        call()
    return "tiled" if seen.tiled else "dense"


def test_auto_on_cpu():
    assert ran(lambda: modulated_attention(*problem(9))) == "tiled"


# torch imports its own scripted decompositions for forward-mode derivatives.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
def test_transforms_take_the_dense_form():
    inputs = problem(190, batch=1)

    def total(query: Tensor) -> Tensor:
        return modulated_attention(query, *inputs[1:]).square().sum()

    query = inputs[0].clone().requires_grad_()
    (expected,) = torch.autograd.grad(total(query), query)
    torch.testing.assert_close(torch.func.grad(total)(inputs[0]), expected)
    stacked = torch.stack([inputs[0], inputs[0] + 1])
    torch.testing.assert_close(torch.func.vmap(total)(stacked), torch.stack([total(item) for item in stacked]))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(inputs[0], torch.ones_like(inputs[0]))
        tangent = forward_ad.unpack_dual(total(dual)).tangent
    torch.testing.assert_close(tangent, expected.sum())


def test_exported_graph_holds_operators_of_torch_alone():
    class Attention(torch.nn.Module):
        def forward(self, *inputs: Tensor) -> Tensor:
            return modulated_attention(*inputs)

    inputs = tuple(problem(190, batch=1))
    program = torch.export.export(Attention(), inputs)
    assert "stmi_layers" not in str(program.graph)
    torch.testing.assert_close(program.module()(*inputs), modulated_attention(*inputs))


def test_forcing_inside_a_transform_is_refused():
    inputs = problem(9)
    with pytest.raises(ValueError, match=r'implementation="tiled" cannot run inside a transform of torch\.func'):
        torch.func.grad(lambda query: modulated_attention(query, *inputs[1:], implementation="tiled").sum())(inputs[0])


def test_tiles_are_for_cpu():
    inputs = [item.to("meta") for item in problem(9)]
    with pytest.raises(ValueError, match="is for CPU tensors; received query on meta"):
        modulated_attention(*inputs, implementation="tiled")


def test_a_layer_asked_for_the_dense_form_has_second_derivatives():
    tokens = torch.randn(1, 260, 4, dtype=torch.float64, requires_grad=True)
    layer = SegmentationModulatedAttention(4, 1, implementation="dense", dtype=torch.float64)
    (gradient,) = torch.autograd.grad(layer(tokens, torch.rand(1, 260) < 0.5).square().sum(), tokens, create_graph=True)
    gradient.square().sum().backward()
    assert tokens.grad is not None
    assert tokens.grad.isfinite().all()


def test_second_derivative_names_the_way_out():
    query, *rest = problem(9)
    query.requires_grad_()
    (gradient,) = torch.autograd.grad(
        modulated_attention(query, *rest, implementation="tiled").square().sum(), query, create_graph=True
    )
    with pytest.raises(NotImplementedError, match=r'has no second derivative: .* implementation="dense"'):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_mask_that_carries_its_sides(dtype):
    *vectors, foreground, alpha, beta = problem(20, dtype=dtype)
    expected = modulated_attention(*vectors, foreground.clone(), alpha, beta)
    assert torch.equal(modulated_attention(*vectors, prepare(foreground), alpha, beta), expected)
