"""The C++ kernel against the float64 specification, built here once."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import reference
from attention_problems import LAYOUTS, assert_equal, problem, with_gradients
from stmi_layers import SegmentationModulatedAttention, modulated_attention
from stmi_layers.kernels import native
from stmi_layers.kernels.native.__main__ import PROCESSORS, build

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("_built")]  # compiles for some 15 seconds


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library: one that is there, of these sources and for this torch, or else one in a folder of the tests."""
    if native.is_built():
        return native.library_path()
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    if torch.backends.cpu.get_cpu_capability() not in PROCESSORS:
        pytest.skip("a processor without AVX2")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("extensions")))
        return build()


@pytest.fixture
def _built(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(library.parents[1]))


def attend(*inputs: Tensor) -> Tensor:
    return modulated_attention(*inputs, implementation="native")


def uneven(inputs: list[Tensor]) -> list[Tensor]:
    """The problem with other strengths in each head."""
    *tensors, alpha, beta = inputs
    steps = torch.linspace(1, 0.5, tensors[0].shape[1], dtype=alpha.dtype)
    return [*tensors, alpha * steps, beta * steps]


@given(
    tokens=st.integers(1, 70),
    share=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    strengths=st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)),
    batch=st.integers(1, 3),
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 20),
    per_head=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_specification(tokens, share, strengths, batch, heads, head_dim, per_head, seed):
    sizes = {"batch": batch, "heads": heads, "head_dim": head_dim}
    inputs = problem(tokens, share, strengths=strengths, seed=seed, **sizes)
    assert_equal("native", uneven(inputs) if per_head else inputs)


def test_equations_loop_by_loop():
    inputs = problem(30, batch=1, heads=1, head_dim=2)
    torch.testing.assert_close(attend(*inputs), reference.modulated_attention(*inputs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("head_dim", [33, 64, 128])
@pytest.mark.parametrize("tokens", [49, 129, 250])
def test_float32(tokens, head_dim):
    assert_equal("native", uneven(problem(tokens, head_dim=head_dim, dtype=torch.float32)), tolerance=2e-5)


@pytest.mark.parametrize("strengths", [(0.0, 0.0), (1.0, 1.0), (1.5, -0.5), (-0.5, 1.5)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_float32_at_the_ends_of_the_strengths(share, strengths):
    assert_equal("native", problem(65, share, strengths=strengths, dtype=torch.float32), tolerance=5e-5)


def test_only_the_class_token_is_foreground():
    inputs = problem(129, 0.0, head_dim=16)
    inputs[3][:, 0] = True
    assert_equal("native", inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_no_more_than_plain_attention(dtype):
    inputs = problem(129, head_dim=64, dtype=dtype)
    (result, *gradients), (truth, *truths) = with_gradients("native", inputs), with_gradients("specification", inputs)
    exact = F.scaled_dot_product_attention(*(item.double() for item in inputs[:3]))
    plain_error = (F.scaled_dot_product_attention(*inputs[:3]).double() - exact).square().mean()
    assert (result.double() - truth).square().mean() <= plain_error
    assert result.dtype == dtype
    for actual, expected in zip(gradients[:3], truths[:3], strict=True):
        relative = (actual.double() - expected.double()).norm() / expected.double().norm()
        assert relative < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("strengths", [(0.1, 0.1), (1.0, 1.0), (1.5, -0.5), (-0.5, 1.5)])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_logits_of_ten_thousand(share, strengths):
    inputs = problem(40, share, head_dim=4, strengths=strengths)
    inputs[0] = inputs[0] * 1e4
    assert_equal("native", inputs, tolerance=1e-8)
    single = [item.float() if item.is_floating_point() else item for item in inputs]
    result, *gradients = with_gradients("native", single)
    assert all(item.isfinite().all() for item in gradients)
    # A logit of 1e4 is known to about 1e-3 in float32.
    torch.testing.assert_close(result.double(), with_gradients("specification", single)[0], rtol=0, atol=2e-2)


def test_gradcheck():
    leaves = [item.detach().requires_grad_(item.is_floating_point()) for item in uneven(problem(7, head_dim=3))]
    assert torch.autograd.gradcheck(attend, leaves)


def test_of_tied_extrema_one_key_has_the_gradient():
    query, key, *rest = problem(24, head_dim=4)
    inputs = [query, key[:, :, :12].repeat(1, 1, 2, 1), *rest]
    actual, expected = with_gradients("native", inputs), with_gradients("specification", inputs)
    actual[2], expected[2] = (each[2].unflatten(2, (2, 12)).sum(dim=2) for each in (actual, expected))
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-9)


def test_any_strides():
    query, key, value, *rest = problem(20)
    expected = with_gradients("native", [query.contiguous(), key.contiguous(), value.contiguous(), *rest])
    assert all(map(torch.equal, with_gradients("native", [query, key, value, *rest]), expected))
    for layout in LAYOUTS.values():
        assert_equal("native", [*map(layout, (query, key, value)), *rest])
    assert_equal("native", [query[:, :, :1].expand_as(query), key, value, *rest])
    leaf, again = (query.detach().clone().requires_grad_() for _ in range(2))
    attend(leaf, key, value, *rest).sum().backward()  # its gradient is one number, expanded
    modulated_attention(again, key, value, *rest, implementation="dense").sum().backward()
    torch.testing.assert_close(leaf.grad, again.grad)


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (2, 0, 5, 4), (2, 2, 0, 4)])
def test_nothing_to_attend(shape):
    vectors = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    result = attend(*vectors, torch.ones(shape[0], shape[2], dtype=torch.bool), *torch.tensor([[0.1], [0.1]]))
    result.sum().backward()
    assert result.shape == vectors[0].grad.shape == shape


def test_nan_is_seen():
    inputs = problem(60, batch=1, heads=1)
    inputs[1][0, 0, 30, 2] = math.nan
    assert attend(*inputs).isnan().all()


@pytest.fixture
def _threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("_threads")
def test_number_of_threads():
    many, one = problem(100, heads=3, dtype=torch.float32), problem(600, batch=1, heads=1)
    torch.set_num_threads(1)
    expected, expected_of_one = with_gradients("native", many), with_gradients("native", one)
    torch.set_num_threads(2)
    assert all(map(torch.equal, with_gradients("native", many), expected))
    # One head for two threads: its gradients are sums of two parts.
    actual = with_gradients("native", one)
    torch.testing.assert_close(actual, expected_of_one, rtol=1e-9, atol=1e-9)
    assert [item.stride() for item in actual] == [item.stride() for item in expected_of_one]
    assert all(map(torch.equal, with_gradients("native", one), actual))


def test_operators_keep_the_rules_of_torch():
    inputs = [item.detach().requires_grad_(item.is_floating_point()) for item in uneven(problem(9))]
    attend(*inputs)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.stmi_layers.native_attention, (*inputs, 0.5), test_utils=checks)


@pytest.mark.skipif(not hasattr(torch.compiler, "is_exporting"), reason="torch 2.6 takes a compilation for an export")
def test_compiled_in_one_graph(monkeypatch: pytest.MonkeyPatch):
    torch._dynamo.reset()
    monkeypatch.setattr(native, "_loaded", False)  # as in a process whose first call is a compiled call
    compiled = torch.compile(modulated_attention, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (20, 33):
        results = []
        for function in (compiled, modulated_attention):
            leaves = [item.detach().requires_grad_(item.is_floating_point()) for item in uneven(problem(tokens))]
            result = function(*leaves, implementation="native")
            learned = [leaf for leaf in leaves if leaf.requires_grad]
            results.append([result, *torch.autograd.grad(result.sin().sum(), learned)])
        assert all(map(torch.equal, *results))


def test_second_derivative_names_the_way_out():
    query, *rest = problem(5)
    query = query.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(attend(query, *rest).square().sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match=r'"native" has no second derivative: .* implementation="dense"'):
        gradient.sum().backward()


def test_counters_see_as_many_flops_as_of_tiles():
    leaves = [item.detach().requires_grad_(item.is_floating_point()) for item in problem(65, head_dim=16)]
    found = {}
    for form in ("native", "tiled"):
        with FlopCounterMode(display=False) as forward:
            result = modulated_attention(*leaves, implementation=form)
        with FlopCounterMode(display=False) as backward:
            result.sum().backward()
        found[form] = forward.get_total_flops(), backward.get_total_flops()
    assert found["native"] == found["tiled"] > (0, 0)


def test_a_layer_under_autocast():
    layer = SegmentationModulatedAttention(16, 2, per_head=True, implementation="native")
    tokens, foreground = torch.randn(3, 20, 16), torch.rand(3, 20) < 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = layer(tokens, foreground)
    layer.implementation = "dense"
    torch.testing.assert_close(result.float(), layer(tokens, foreground), rtol=0, atol=0.05)


def test_wrong_shapes_are_refused_by_the_operators():
    query, key, value, foreground, *_ = problem(5, dtype=torch.float32)
    strengths, operators = (torch.ones(2), torch.ones(2)), torch.ops.stmi_layers
    with pytest.raises(RuntimeError, match="must have one shape"):
        operators.native_attention(query, key[:, :, 1:], value, foreground, *strengths, 1.0)
    with pytest.raises(RuntimeError, match="foreground must be batch x tokens"):
        operators.native_attention(query, key, value, foreground[:, 1:], *strengths, 1.0)
    with pytest.raises(RuntimeError, match="one entry per head"):
        operators.native_attention(query, key, value, foreground, strengths[0], strengths[1][:1], 1.0)
    inputs = query, key, value, foreground, *strengths
    result, summaries = operators.native_attention(*inputs, 1.0)
    with pytest.raises(RuntimeError, match="must have the shape of query"):
        operators.native_attention_backward(result[:1], *inputs, result, summaries, 1.0)
    with pytest.raises(RuntimeError, match="summaries must be"):
        operators.native_attention_backward(result, *inputs, result, summaries[..., :4], 1.0)
