"""The C++ kernel against the float64 specification: built here when there is a compiler, forward and all gradients."""

import math
import shutil

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

import reference
from stmi_layers import modulate_logits
from stmi_layers.kernels import native
from stmi_layers.kernels.native import native_attention
from stmi_layers.kernels.native.__main__ import build

NAMES = ("result", "query", "key", "value", "alpha", "beta")


@pytest.fixture(scope="module", autouse=True)
def _built(tmp_path_factory: pytest.TempPathFactory):
    """Build into a folder of the test's own, and leave no kernel behind for other tests of this process."""
    if native.available():
        yield
        return
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler to build the native kernel with")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("extensions")))
        native.library_path.cache_clear()
        build()
        assert native.load()
        yield
    native._loaded = False
    native.library_path.cache_clear()


def problem(
    tokens: int,
    share: float = 0.4,
    *,
    batch: int = 2,
    heads: int = 2,
    head_dim: int = 8,
    strengths: tuple[float, float] = (0.3, 0.6),
    per_head: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Query, key, value, foreground, alpha, beta; the vectors are views of one packed projection, as in a ViT."""
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(batch, tokens, 3, heads, head_dim, generator=generator, dtype=torch.float64).to(dtype)
    foreground = torch.rand(batch, tokens, generator=generator) < share
    steps = torch.linspace(1, 0.5, heads if per_head else 1, dtype=torch.float64)
    alpha, beta = ((steps * strength).to(dtype) for strength in strengths)
    return [*packed.permute(2, 0, 3, 1, 4), foreground, alpha, beta]


def attend(query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    return native_attention(query, key, value, foreground, alpha, beta, query.shape[-1] ** -0.5)


def specification(query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    query, key, value, alpha, beta = (item.double() for item in (query, key, value, alpha, beta))
    logits = modulate_logits(query @ key.mT / math.sqrt(query.shape[-1]), foreground, alpha, beta)
    return logits.softmax(dim=-1) @ value


def with_gradients(function, inputs: list[Tensor]) -> list[Tensor]:
    """Result and gradients of query, key, value, alpha and beta."""
    leaves = [item.detach().requires_grad_(item.is_floating_point()) for item in inputs]
    result = function(*leaves)
    incoming = torch.linspace(-1, 2, result.numel(), dtype=torch.float64).reshape(result.shape).sin()
    learned = [leaf for leaf in leaves if leaf.is_floating_point()]
    return [result.detach(), *torch.autograd.grad(result, learned, incoming.to(result.dtype))]


def assert_equal(inputs: list[Tensor], tolerance: float = 1e-11, function=attend) -> None:
    actual, expected = with_gradients(function, inputs), with_gradients(specification, inputs)
    for name, one, other in zip(NAMES, actual, expected, strict=True):
        assert one.isfinite().all(), name
        size = other.double().abs().max().clamp(min=1.0).item()
        torch.testing.assert_close(
            one.double(), other.double(), rtol=0, atol=tolerance * size, msg=lambda text, name=name: f"{name}: {text}"
        )


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
def test_agrees_with_the_specification(tokens, share, strengths, batch, heads, head_dim, per_head, seed):
    sizes = {"batch": batch, "heads": heads, "head_dim": head_dim}
    assert_equal(problem(tokens, share, strengths=strengths, per_head=per_head, seed=seed, **sizes))


def test_equations_loop_by_loop():
    inputs = problem(30, batch=1, heads=1, head_dim=2)
    torch.testing.assert_close(attend(*inputs), reference.modulated_attention(*inputs), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("head_dim", [33, 64, 128])
@pytest.mark.parametrize("tokens", [49, 129, 250])
def test_float32(tokens, head_dim):
    assert_equal(problem(tokens, head_dim=head_dim, per_head=True, dtype=torch.float32), tolerance=2e-5)


@pytest.mark.parametrize("strengths", [(0.0, 0.0), (1.0, 1.0), (1.5, -0.5), (-0.5, 1.5)])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_float32_at_the_ends_of_the_strengths(share, strengths):
    assert_equal(problem(65, share, strengths=strengths, dtype=torch.float32), tolerance=5e-5)


def test_only_the_class_token_is_foreground():
    inputs = problem(129, 0.0, head_dim=16)
    inputs[3][:, 0] = True
    assert_equal(inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_errs_no_more_than_plain_attention(dtype):
    inputs = problem(129, head_dim=64, dtype=dtype)
    error = (attend(*inputs).double() - specification(*inputs)).square().mean()
    exact = F.scaled_dot_product_attention(*(item.double() for item in inputs[:3]))
    plain_error = (F.scaled_dot_product_attention(*inputs[:3]).double() - exact).square().mean()
    assert error <= plain_error
    result, *grads = with_gradients(attend, inputs)
    assert result.dtype == dtype
    for actual, expected in zip(grads[:3], with_gradients(specification, inputs)[1:4], strict=True):
        relative = (actual.double() - expected.double()).norm() / expected.double().norm()
        assert relative < 2 * torch.finfo(dtype).eps


@pytest.mark.parametrize("strengths", [(0.1, 0.1), (1.0, 1.0), (1.5, -0.5), (-0.5, 1.5)])
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_logits_of_ten_thousand(share, strengths):
    inputs = problem(40, share, head_dim=4, strengths=strengths)
    inputs[0] = inputs[0] * 1e4
    assert_equal(inputs, tolerance=1e-8)
    single = [item.float() if item.is_floating_point() else item for item in inputs]
    assert all(item.isfinite().all() for item in with_gradients(attend, single))
    # A logit of 1e4 is known to about 1e-3 in float32.
    torch.testing.assert_close(attend(*single).double(), specification(*single), rtol=0, atol=2e-2)


def test_gradcheck():
    inputs = [item.detach().requires_grad_(item.is_floating_point()) for item in problem(7, head_dim=3, per_head=True)]
    assert torch.autograd.gradcheck(attend, inputs)


def test_tied_extremes_share_their_gradient_among_equal_keys():
    inputs = problem(24, head_dim=4)
    query, key, *others = inputs
    repeated = key[:, :, :12].repeat(1, 1, 2, 1)
    actual = with_gradients(attend, [query, repeated, *others])
    expected = with_gradients(specification, [query, repeated, *others])
    for one, other in zip(actual[:2] + actual[3:], expected[:2] + expected[3:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    halves = [grad.unflatten(2, (2, 12)).sum(dim=2) for grad in (actual[2], expected[2])]
    torch.testing.assert_close(*halves, rtol=1e-9, atol=1e-9)


def test_any_strides():
    query, key, value, *others = problem(20)
    expected = with_gradients(attend, [query.contiguous(), key.contiguous(), value.contiguous(), *others])
    features_apart = [item.transpose(-1, -2).contiguous().transpose(-1, -2) for item in (query, key, value)]
    assert features_apart[0].stride(-1) != 1
    for inputs in ([query, key, value, *others], [*features_apart, *others]):
        for one, other in zip(with_gradients(attend, inputs), expected, strict=True):
            assert torch.equal(one, other)
    one_query = query[:, :, :1].expand_as(query)
    assert_equal([one_query, key, value, *others])


def test_a_gradient_that_is_one_number_expanded():
    inputs = problem(20)
    grads = []
    for function in (attend, specification):
        query = inputs[0].detach().requires_grad_()
        function(query, *inputs[1:]).sum().backward()
        grads.append(query.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("shape", [(0, 2, 5, 4), (2, 0, 5, 4), (2, 2, 0, 4)])
def test_nothing_to_attend(shape):
    query, key, value = (torch.randn(shape, requires_grad=True) for _ in range(3))
    foreground = torch.ones(shape[0], shape[2], dtype=torch.bool)
    result = attend(query, key, value, foreground, torch.tensor([0.1]), torch.tensor([0.1]))
    result.sum().backward()
    assert result.shape == query.grad.shape == shape


def test_nan_is_seen():
    inputs = problem(60, batch=1, heads=1)
    inputs[1][0, 0, 30, 2] = math.nan
    assert attend(*inputs).isnan().all()


def test_thread_count():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        many, one = problem(100, heads=3, dtype=torch.float32), problem(600, batch=1, heads=1)
        expected, expected_of_one = with_gradients(attend, many), with_gradients(attend, one)
        torch.set_num_threads(2)
        for actual, other in zip(with_gradients(attend, many), expected, strict=True):
            assert torch.equal(actual, other)
        # One head for two threads: its gradients are sums of two parts.
        for actual, other in zip(with_gradients(attend, one), expected_of_one, strict=True):
            torch.testing.assert_close(actual, other, rtol=1e-9, atol=1e-9)
            assert actual.stride() == other.stride()
    finally:
        torch.set_num_threads(threads)


def test_operators_keep_the_rules_of_torch():
    inputs = problem(9, per_head=True)
    inputs = [item.detach().requires_grad_(item.is_floating_point()) for item in inputs]
    attend(*inputs)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.stmi_layers.native_attention, (*inputs, 0.5), test_utils=checks)


def test_compile_in_one_graph():
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (20, 33):
        assert_equal(problem(tokens, per_head=True), function=compiled)


def test_second_derivative_is_refused():
    inputs = problem(5)
    query = inputs[0].detach().requires_grad_()
    (grad,) = torch.autograd.grad(attend(query, *inputs[1:]).square().sum(), query, create_graph=True)
    with pytest.raises(NotImplementedError, match="differentiated once"):
        grad.sum().backward()


def test_errors():
    query, key, value, *others = problem(5, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"one dtype; received query torch\.float32, key torch\.float16"):
        attend(query, key.half(), value, *others)
    with pytest.raises(ValueError, match=r"needs CPU tensors .* received query torch\.float32 on meta"):
        attend(*(item.to("meta") for item in (query, key, value, *others)))
    with pytest.raises(TypeCheckError, match="tokens"):
        attend(query, key[:, :, 1:], value, *others)
    attend(query, key, value, *others)
    strengths = torch.ones(2), torch.ones(2)
    with pytest.raises(RuntimeError, match="must have one shape"):
        torch.ops.stmi_layers.native_attention(query, key[:, :, 1:], value, others[0], *strengths, 1.0)
    with pytest.raises(RuntimeError, match="foreground must be batch x tokens"):
        torch.ops.stmi_layers.native_attention(query, key, value, others[0][:, 1:], *strengths, 1.0)
    with pytest.raises(RuntimeError, match="one entry per head"):
        torch.ops.stmi_layers.native_attention(query, key, value, others[0], *others[1:], 1.0)


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """A folder for extensions in which nothing has been built."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setattr(native, "_loaded", False)
    native.library_path.cache_clear()
    yield tmp_path
    native.library_path.cache_clear()


def test_without_the_library(elsewhere):
    inputs = problem(5)
    assert not native.available()
    assert not native.usable(inputs[0])
    with pytest.raises(ValueError, match=r"python -m stmi_layers\.kernels\.native.*kernel not built"):
        attend(*inputs)


def test_build_without_a_compiler(elsewhere, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(RuntimeError, match="no-such-compiler is not there: install"):
        build()


def test_build_with_a_compiler_that_fails(elsewhere, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    with pytest.raises(RuntimeError, match="C\\+\\+20 with OpenMP"):
        build()
    assert not list((elsewhere / "stmi_layers").iterdir())
