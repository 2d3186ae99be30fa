"""Attention over widened heads against the float64 specification: the form for GPUs by torch's own operators."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attention_problems import LAYOUTS, NAMES, assert_equal, problem, with_gradients
from stmi_layers import modulated_attention
from stmi_layers.kernels import widened


@given(
    tokens=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    strengths=st.tuples(st.floats(-0.5, 1.5), st.floats(-0.5, 1.5)),
    head_dim=st.integers(1, 17),
    heads=st.integers(1, 3),
    rows=st.integers(1, 50),
    per_head=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_specification(tokens, share, strengths, head_dim, heads, rows, per_head, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(widened, "ROWS", rows)
        options = {"strengths": strengths, "heads": heads, "head_dim": head_dim, "per_head": per_head, "seed": seed}
        assert_equal("widened", problem(tokens, share, **options))


def test_single_precision():
    assert_equal("widened", problem(200, dtype=torch.float32), tolerance=1e-5)


@pytest.mark.parametrize("scale", [1e-3, 0.3, 3.0])
def test_any_scale(scale):
    *vectors, foreground, alpha, beta = problem(20)
    actual = modulated_attention(*vectors, foreground, alpha, beta, scale=scale, implementation="widened")
    expected = modulated_attention(*vectors, foreground, alpha, beta, scale=scale, implementation="dense")
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("tokens", [30, 300])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_errs_as_plain_attention_does(dtype, tokens):
    """Gradients too: with many tokens, rounding alone would send that of an extremum to another key."""
    inputs = problem(tokens, dtype=dtype, head_dim=64)

    def errors(results: list[Tensor], truths: list[Tensor]) -> list[float]:
        return [
            ((result.double() - truth).norm() / truth.norm()).item()
            for result, truth in zip(results, truths, strict=True)
        ]

    ours = errors(with_gradients("widened", inputs), with_gradients("specification", inputs))
    leaves = [item.detach().clone().requires_grad_() for item in inputs[:3]]
    wide = [item.detach().double().requires_grad_() for item in inputs[:3]]
    plain = []
    for vectors in (leaves, wide):
        result = F.scaled_dot_product_attention(*vectors)
        incoming = torch.linspace(-1, 2, result.numel(), dtype=torch.float64).reshape(result.shape).sin()
        plain.append([result, *torch.autograd.grad(result, vectors, incoming.to(result.dtype))])
    limit = max(errors([item.detach() for item in plain[0]], [item.detach() for item in plain[1]]))
    assert ours[0] <= 1.5 * limit
    for name, error in zip(NAMES[:4], ours[:4], strict=True):
        assert error <= 3 * limit, name
    assert max(ours[4:]) <= 8 * torch.finfo(dtype).eps  # alpha and beta


def test_float16_logits_above_its_range():
    inputs = problem(80, dtype=torch.float16)
    inputs[0], inputs[1] = inputs[0] * 60, inputs[1] * 60
    assert (inputs[0].double() @ inputs[1].double().mT).abs().max() > torch.finfo(torch.float16).max / 8
    assert all(item.isfinite().all() for item in with_gradients("widened", inputs))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_last_axis_need_not_be_dense(layout):
    *vectors, foreground, alpha, beta = problem(40)
    assert_equal("widened", [*map(LAYOUTS[layout], vectors), foreground, alpha, beta])


def test_of_tied_extrema_one_key_has_the_gradient():
    query, key, *rest = problem(20, batch=1)
    key[:, :, 1::2] = key[:, :, ::2]
    inputs = [query, key, *rest]
    actual, expected = with_gradients("widened", inputs), with_gradients("specification", inputs)
    actual[2], expected[2] = (each[2].unflatten(2, (-1, 2)).sum(dim=3) for each in (actual, expected))
    torch.testing.assert_close(actual, expected)


def test_empty_batch():
    result, *gradients = with_gradients("widened", problem(9, batch=0))
    assert result.numel() == 0
    assert [gradient.abs().sum() for gradient in gradients] == [0.0] * 5


def test_memory_grows_with_the_number_of_tokens():
    def largest(tokens: int) -> int:
        leaves = [item.requires_grad_(item.is_floating_point()) for item in problem(tokens, batch=1, heads=1)]
        with torch.profiler.profile(profile_memory=True) as profile:
            modulated_attention(*leaves, implementation="widened").sum().backward()
        return max(event.self_cpu_memory_usage for event in profile.events() or [])

    few, many = largest(1000), largest(4000)
    assert 0 < many <= 4.2 * few
    assert many < 8 * 4000**2 / 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_with_gradients(dtype):
    torch._dynamo.reset()
    inputs = problem(140, dtype=dtype)
    compiled = torch.compile(modulated_attention, fullgraph=True, backend="aot_eager")
    results = []
    for attend in (compiled, modulated_attention):
        leaves = [item.clone().requires_grad_(item.is_floating_point()) for item in inputs]
        result = attend(*leaves, implementation="widened")
        results.append([result, *torch.autograd.grad(result.sum(), [leaf for leaf in leaves if leaf.requires_grad])])
    torch.testing.assert_close(*results)


def test_gradients_under_function_transforms():
    inputs = problem(12)

    def total(query: Tensor) -> Tensor:
        return modulated_attention(query, *inputs[1:], implementation="widened").square().sum()

    query = inputs[0].clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(total)(inputs[0]), *torch.autograd.grad(total(query), query))


class Operators(TorchDispatchMode):
    """Names of the operators that ran."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.names.append(function.name())
        return function(*arguments, **(options or {}))


def test_auto_takes_it_off_the_cpu():
    inputs = [item.to("meta") for item in problem(9)]
    with Operators() as ran:
        assert modulated_attention(*inputs).shape == inputs[2].shape
    assert any("argmax" in name for name in ran.names)
    assert not any("stmi_layers" in name for name in ran.names)
