"""The Triton kernels against the equations in float64: on a GPU, or in Triton's interpreter on any machine.

The interpreter must be chosen before Triton is imported. Without a GPU these tests therefore skip, and one of them runs
the whole file again in a process of its own, with `TRITON_INTERPRET=1`.
"""

import importlib.util
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from einops import rearrange
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import reference
from stmi_layers import modulated_attention
from stmi_layers.kernels import triton_attention

INSTALLED = importlib.util.find_spec("triton") is not None
OLD = INSTALLED and version("triton").startswith("3.2.")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
DEVICE = "cpu" if INTERPRETED else "cuda"

runs_kernels = pytest.mark.skipif(not (INSTALLED and (INTERPRETED or GPU)), reason="needs a GPU or TRITON_INTERPRET=1")
on_gpu = pytest.mark.skipif(not INSTALLED or INTERPRETED or not GPU, reason="needs a GPU")
without_interpreter = pytest.mark.skipif(not INSTALLED or INTERPRETED, reason="needs triton, not interpreted")

# Of the largest entry; for the strengths, of the sum of what the rows contribute, without their signs.
BOUNDS = {torch.float32: 2e-5, torch.float16: 5e-3, torch.bfloat16: 4e-2}


class Problem(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    foreground: Tensor
    alpha: Tensor
    beta: Tensor


def problem(
    tokens: int,
    head_dim: int = 32,
    share: float = 0.5,
    alpha: float | list[float] = 0.3,
    beta: float | list[float] = 0.2,
    dtype: torch.dtype = torch.float32,
    batch: int = 2,
    heads: int = 2,
) -> Problem:
    shape = (3, batch, heads, tokens, head_dim)
    query, key, value = torch.randn(shape).to(DEVICE, dtype)
    strengths = (torch.tensor(s if isinstance(s, list) else [s], device=DEVICE) for s in (alpha, beta))
    return Problem(query, key, value, torch.rand(batch, tokens).to(DEVICE) < share, *strengths)


def attend(given: Problem) -> Tensor:
    return modulated_attention(*given, implementation="triton")


def differentiate(given: Problem, grad: Tensor) -> tuple[Tensor, ...]:
    """Output and gradients of the kernels."""
    leaves = given._replace(**{name: getattr(given, name).detach().requires_grad_() for name in DIFFERENTIABLE})
    output = attend(leaves)
    return output.detach(), *torch.autograd.grad(output, [getattr(leaves, name) for name in DIFFERENTIABLE], grad)


DIFFERENTIABLE = ("query", "key", "value", "alpha", "beta")


def specification(given: Problem, grad: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Output and gradients of eq. 3-8 in float64, and the size that the error of each is measured by."""
    given = Problem(*(tensor.detach().cpu() for tensor in given))
    query, key, value = (tensor.double().requires_grad_() for tensor in given[:3])
    batch, heads, tokens, head_dim = query.shape
    rows = (batch, heads, tokens, 1)
    alpha, beta = (s.double()[None, :, None, None].expand(rows).clone().requires_grad_() for s in given[4:])
    logits = query @ key.mT * head_dim**-0.5
    pair = (given.foreground[:, :, None] & given.foreground[:, None, :])[:, None]
    up = alpha * pair * (logits.amax(-1, keepdim=True) - logits)
    down = beta * ~pair * (logits - logits.amin(-1, keepdim=True))
    output = (logits + up - down).softmax(-1) @ value
    grads = torch.autograd.grad(output, (query, key, value, alpha, beta), grad.double().cpu())
    results = [output.detach(), *grads[:3]]
    sizes = [result.abs().amax() for result in results]
    for strength, by_row in zip(given[4:], grads[3:], strict=True):
        dims = (0, 2, 3) if len(strength) > 1 else (0, 1, 2, 3)
        results.append(by_row.sum(dims).reshape(strength.shape))
        sizes.append(by_row.abs().sum(dims).amax())
    return results, sizes


def check(given: Problem, bound: float | None = None) -> None:
    grad = torch.randn(given.query.shape).to(given.query)
    bound = BOUNDS[given.query.dtype] if bound is None else bound
    names = ("output", *DIFFERENTIABLE)
    for name, result, expected, size in zip(
        names, differentiate(given, grad), *specification(given, grad), strict=True
    ):
        like = given.query if name == "output" else getattr(given, name)
        assert (result.shape, result.dtype) == (like.shape, like.dtype), name
        error = (result.double().cpu() - expected).abs().amax()
        # Rows with one token have no gradient, and what a row gives is rounding alone, of up to 1e-6; the strengths add
        # that up over all rows.
        rounding = 1e-6 * (given.query[..., 0].numel() if name in ("alpha", "beta") else 1)
        assert error <= bound * size + rounding, f"{name}: {error:.1e} at entries of {size:.1e}"


# Without the kernels


@pytest.mark.slow
@without_interpreter
@pytest.mark.skipif(OLD, reason="the interpreter of Triton 3.2 takes minutes; the tests need 3.3")
def test_this_file_passes_in_the_interpreter(pytestconfig: pytest.Config):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment |= {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", __file__, "-q", "-p", "no:cacheprovider"]
    command += [f"-W{one}" for one in pytestconfig.getoption("pythonwarnings") or ()]  # as here, with other versions
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.skipif(INTERPRETED, reason="the interpreter takes CPU tensors")
def test_tensors_on_cpu_are_refused():
    tensors = torch.zeros(1, 1, 3, 32)
    assert not triton_attention.usable(tensors)
    message = r"need an installed triton, an NVIDIA GPU .* received query torch.float32 on cpu with head_dim 32, triton"
    with pytest.raises(ValueError, match=message):
        triton_attention.triton_modulated_attention(
            tensors, tensors, tensors, torch.ones(1, 3, dtype=torch.bool), torch.zeros(1), torch.zeros(1), 1.0
        )


@runs_kernels
@pytest.mark.parametrize(
    ("head_dim", "dtype", "taken"),
    [
        (32, torch.float16, True),
        (64, torch.float32, True),
        (128, torch.float32, True),
        (32, torch.float64, False),
        (48, torch.float32, False),
        (32, torch.bfloat16, not INTERPRETED),
    ],
)
def test_what_the_kernels_take(head_dim, dtype, taken):
    assert triton_attention.usable(torch.zeros(1, 1, 3, head_dim, dtype=dtype, device=DEVICE)) == taken


@pytest.mark.slow
@without_interpreter
def test_kernels_compile_for_ampere(monkeypatch, tmp_path):
    """The interpreter takes what the compiler does not; the compiler needs no GPU."""
    head_dim = 64
    triton = pytest.importorskip("triton", minversion="3.3")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from stmi_layers.kernels import triton_backward, triton_forward

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    forward = triton_forward.forward_blocks(torch.float16, head_dim)
    backward = triton_backward.backward_blocks(torch.float16, head_dim)
    swapped = backward._replace(rows=backward.columns, columns=backward.rows)
    kernels = [
        (triton_forward.order_kernel, forward),
        (triton_forward.forward_kernel, forward),
        (triton_backward.query_kernel, backward),
        (triton_backward.key_kernel, swapped),
    ]
    types = {"scale": "fp32", "tokens": "i32", "heads": "i32", "foreground": "*u8"}
    types |= dict.fromkeys(("order", "counts", "places"), "*i32")
    types |= dict.fromkeys(("alpha", "beta", "normalizers", "deltas", "constants", "grad_strengths"), "*fp32")
    for kernel, blocks in kernels:
        sizes = {"HEAD_DIM": head_dim, "ROWS": blocks.rows, "COLUMNS": blocks.columns, "BLOCK": 1024}
        constants = {name: size for name, size in sizes.items() if name in kernel.arg_names}
        strides = {name: "i32" for name in kernel.arg_names if name.endswith(("_batch", "_head", "_token", "_stride"))}
        known = types | strides | dict.fromkeys(constants, "constexpr")
        signature = {name: known.get(name, "*fp16") for name in kernel.arg_names}
        aligned = {(i,): [["tt.divisibility", 16]] for i, type_ in enumerate(signature.values()) if type_[0] == "*"}
        options = {"num_warps": blocks.warps, "num_stages": blocks.stages, "maxnreg": blocks.registers}
        options["enable_fp_fusion"] = True
        target = GPUTarget("cuda", 80, 32)
        compiled = triton.compile(ASTSource(kernel, signature, constants, aligned), target=target, options=options)
        assert compiled.metadata.shared <= 99 * 1024, kernel.__name__  # what every GPU from Ampere on has


# Against the equations


@runs_kernels
@pytest.mark.parametrize("tokens", [1, 5, 17, 33, 70])
def test_numbers_of_tokens(tokens):
    check(problem(tokens))


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("mask", ["all", "none", "first", "last"])
def test_classes_of_very_different_size(mask, dtype):
    given = problem(tokens=150, batch=1, heads=1, dtype=dtype)
    foreground = torch.full_like(given.foreground, mask == "all")
    if mask in ("first", "last"):
        foreground[:, 0 if mask == "first" else -1] = True
    check(given._replace(foreground=foreground))


@runs_kernels
@pytest.mark.parametrize(("head_dim", "dtype"), [(64, torch.float16), (128, torch.float16), (128, torch.float32)])
def test_widths_of_heads(head_dim, dtype):
    check(problem(tokens=140, head_dim=head_dim, dtype=dtype, batch=1, heads=1, share=0.6))


@runs_kernels
@pytest.mark.parametrize(
    ("alpha", "beta"),
    [(1.3, -0.5), (1.3, 1.2), (-0.5, 1.2), (1.0, 1.0), (0.0, 0.0), ([0.1, 1.3], 0.4), ([0.2, 0.9], [-0.5, 1.2])],
)
def test_strengths(alpha, beta):
    check(problem(tokens=40, alpha=alpha, beta=beta, batch=1))


@runs_kernels
@settings(max_examples=6)
@given(st.lists(st.booleans(), min_size=2, max_size=40), st.floats(-0.5, 1.5), st.floats(-0.5, 1.5), st.integers(0, 99))
def test_any_mask_and_any_strength(flags, alpha, beta, seed):
    torch.manual_seed(seed)
    given = problem(len(flags), alpha=alpha, beta=beta, batch=1, heads=1)
    check(given._replace(foreground=torch.tensor([flags], device=DEVICE)))


@runs_kernels
def test_single_logits_agree_with_the_loops():
    given = problem(tokens=5, alpha=0.7, beta=1.2)
    expected = reference.modulated_attention(*(t.double().cpu() if t.is_floating_point() else t.cpu() for t in given))
    torch.testing.assert_close(attend(given).double().cpu(), expected, rtol=1e-5, atol=1e-5)


@runs_kernels
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_strengths_of_another_dtype(dtype):
    given = problem(tokens=20, alpha=0.5, beta=[0.25, 0.75])  # exact in any of them
    strengths = (given.alpha.to(dtype), given.beta.to(dtype))
    check(Problem(*given[:4], *strengths), bound=2 * max(torch.finfo(dtype).eps, 1e-5))


@runs_kernels
def test_views_are_read_where_they_lie():
    plain = problem(tokens=20)
    projected = torch.cat([rearrange(tensor, "b h n d -> b n (h d)") for tensor in plain[:3]], dim=-1)
    packed = rearrange(projected, "b n (three h d) -> three b h n d", three=3, h=2).unbind()
    wide = torch.zeros(2, 40, dtype=torch.bool, device=DEVICE)
    wide[:, ::2] = plain.foreground
    across = [rearrange(tensor, "b h n d -> b h d n").contiguous().mT for tensor in plain[:3]]
    expected = differentiate(plain, plain.value)
    for views in (packed, across):
        assert not any(view.is_contiguous() for view in views)
        given = Problem(*views, wide[:, ::2], *plain[4:])
        for result, wanted in zip(differentiate(given, plain.value.mT.contiguous().mT), expected, strict=True):
            assert torch.equal(result, wanted)
    assert rearrange(attend(plain), "b h n d -> b n (h d)").is_contiguous()


@runs_kernels
def test_expanded_tensors():
    given = problem(tokens=6, batch=1, heads=1)
    given = given._replace(query=given.query.expand(2, 2, 6, 32), foreground=given.foreground.expand(2, 6))
    given = given._replace(key=given.key.expand(2, 2, 6, 32), value=given.value.expand(2, 2, 6, 32))
    results = differentiate(given, torch.ones((), device=DEVICE).expand(2, 2, 6, 32))
    for result in results[:4]:
        assert torch.equal(result, result[:1, :1].expand_as(result))


@runs_kernels
def test_tied_extrema_share_what_reaches_their_keys():
    given = problem(tokens=12, alpha=0.8, beta=0.7, share=0.7, batch=1, heads=1)
    twice = given._replace(**{name: getattr(given, name).repeat(1, 1, 2, 1) for name in ("query", "key", "value")})
    twice = twice._replace(foreground=given.foreground.repeat(1, 2))
    grad = torch.randn(twice.query.shape).to(DEVICE)
    results, (expected, sizes) = differentiate(twice, grad), specification(twice, grad)
    summed = [
        rearrange(tensor[2].double().cpu(), "b h (two n) d -> two b h n d", two=2).sum(dim=0)
        for tensor in (results, expected)
    ]
    torch.testing.assert_close(*summed, rtol=0, atol=2e-5 * sizes[2].item())
    for i in (0, 1, 3, 4, 5):
        torch.testing.assert_close(results[i].double().cpu(), expected[i], rtol=0, atol=2e-5 * sizes[i].item())


@runs_kernels
def test_rows_whose_logits_are_all_equal():
    given = problem(tokens=9, alpha=0.8, beta=0.7, batch=1, heads=1)
    given = given._replace(key=given.key[:, :, :1].expand(given.key.shape))
    grad = torch.randn(given.query.shape).to(DEVICE)
    results, (expected, sizes) = differentiate(given, grad), specification(given, grad)
    torch.testing.assert_close(results[0].double().cpu(), expected[0], rtol=0, atol=2e-5 * sizes[0].item())
    summed = results[2].sum(dim=2).double().cpu()
    torch.testing.assert_close(summed, expected[2].sum(dim=2), rtol=0, atol=2e-5 * sizes[2].item())


@runs_kernels
@pytest.mark.parametrize("size", [20.0, 250.0])
def test_large_logits_in_half_precision(size):
    """At 250 raw logits exceed the largest float16 number, and the scaled ones reach 1e5: weights are 0 and 1."""
    given = problem(tokens=30, alpha=0.9, beta=0.9, dtype=torch.float16)
    given = given._replace(query=given.query * size, key=given.key * size)
    grad = torch.randn(given.query.shape).to(given.query)
    results, (expected, sizes) = differentiate(given, grad), specification(given, grad)
    assert all(result.isfinite().all() for result in results)
    assert (results[0].double().cpu() - expected[0]).abs().amax() <= BOUNDS[torch.float16] * sizes[0]


@runs_kernels
def test_gradients_are_the_same_in_every_run():
    given = problem(tokens=70, dtype=torch.float16)
    first, second = (differentiate(given, given.value) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@runs_kernels
@pytest.mark.parametrize("shape", [(0, 2, 5, 32), (2, 2, 0, 32)])
def test_nothing_to_attend_to(shape):
    tensors = torch.zeros(3, *shape, device=DEVICE)
    flags = torch.zeros(shape[0], shape[2], dtype=torch.bool, device=DEVICE)
    given = Problem(*tensors, flags, torch.ones(1, device=DEVICE), torch.ones(1, device=DEVICE))
    results = differentiate(given, tensors[0])
    assert results[0].shape == shape
    assert not results[4].any()


# Inside torch


@runs_kernels
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck of torch 2.15
def test_operators_keep_the_rules_of_torch():
    given = problem(tokens=3, alpha=[0.3, 0.4], beta=[0.2, 0.1], batch=1)
    leaves = [tensor.requires_grad_() if tensor.is_floating_point() else tensor for tensor in given]
    torch.library.opcheck(torch.ops.stmi_layers.triton_attention.default, (*leaves, 0.2))


@runs_kernels
def test_compiled_as_one_node():
    graphs = []

    def backend(graph: torch.fx.GraphModule, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return graph

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend=backend)
    for tokens in (5, 9, 12):
        given = problem(tokens)
        assert torch.equal(compiled(given), attend(given))
    assert len(graphs) == 1
    assert sum("triton_attention" in target for target in graphs[0]) == 1


# On a GPU only


@on_gpu
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("tokens", [129, 577, 2305])
def test_sizes_of_real_models(tokens, head_dim, dtype):
    check(problem(tokens, head_dim, dtype=dtype, share=0.4))


@on_gpu
@pytest.mark.parametrize(("alpha", "beta"), [(1.3, -0.5), (1.3, 1.2), (0.0, 0.0)])
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_extremes_in_bfloat16(share, alpha, beta):
    check(problem(300, 64, dtype=torch.bfloat16, share=share, alpha=alpha, beta=beta))


@on_gpu
def test_nothing_waits_for_the_gpu():
    given = problem(129, 64, dtype=torch.bfloat16)
    differentiate(given, given.value)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        differentiate(given, given.value)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@on_gpu
def test_one_compilation_for_all_masks_batches_and_numbers_of_tokens(monkeypatch, tmp_path):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    given = problem(100, 64, dtype=torch.bfloat16)
    differentiate(given, given.value)
    before = set(tmp_path.iterdir())
    for tokens, batch, share in ((129, 1, 0.0), (64, 3, 1.0), (1, 2, 0.5), (577, 5, 0.3)):
        given = problem(tokens, 64, share=share, dtype=torch.bfloat16, batch=batch)
        differentiate(given, given.value)
    assert set(tmp_path.iterdir()) == before


@on_gpu
def test_memory_does_not_grow_with_the_square():
    used = []
    for tokens in (1024, 4096):
        given = problem(tokens, 64, dtype=torch.bfloat16)
        torch.cuda.reset_peak_memory_stats()
        start = torch.cuda.memory_allocated()
        differentiate(given, given.value)
        used.append(torch.cuda.max_memory_allocated() - start)
    assert used[1] <= 4.2 * used[0]
