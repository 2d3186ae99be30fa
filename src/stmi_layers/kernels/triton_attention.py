"""Modulated attention on CUDA: the Triton kernels as one differentiable operator that the compiler sees as a node.

Its readable twin is [`modulate_logits`][stmi_layers.attention.modulate_logits]. Triton is imported with the first call;
this file needs none.
"""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from stmi_layers._typing import typed

HEAD_DIMS = (32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INSTALLED = importlib.util.find_spec("triton") is not None
# Triton's own switch: its kernels then run, slowly, on tensors of the CPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def usable(query: Tensor) -> bool:
    """Whether the kernels take this query, and key and value like it.

    They need Triton; an NVIDIA GPU with compute capability 8 or above, or `TRITON_INTERPRET=1` in the environment from
    the start; float16, bfloat16 or float32; and heads of 32, 64 or 128.
    """
    there = INTERPRETED if query.device.type == "cpu" else query.device.type == "cuda" and _is_ampere(query.device)
    return INSTALLED and there and query.dtype in DTYPES and query.shape[-1] in HEAD_DIMS


@torch.compiler.assume_constant_result
def _is_ampere(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@typed
def triton_modulated_attention(
    query: Float[Tensor, "batch heads tokens head_dim"],
    key: Float[Tensor, "batch heads tokens head_dim"],
    value: Float[Tensor, "batch heads tokens head_dim"],
    foreground: Bool[Tensor, "batch tokens"],
    alpha: Float[Tensor, "#heads"],
    beta: Float[Tensor, "#heads"],
    scale: float,
) -> Float[Tensor, "batch heads tokens head_dim"]:
    """Compute [`modulated_attention`][stmi_layers.attention.modulated_attention] without storing a logit.

    Memory grows with the number of tokens, not with its square. Logits, softmax and all sums are in float32, the weights
    are rounded to the dtype of `value` before the second product; the strengths are read as float32. Gradients are
    exact and the same in every run; where extrema of a row are tied, one of the tied keys takes their gradient.
    Second derivatives are not available.

    Raises:
        ValueError: when the kernels cannot take `query`, see `usable`, or the dtypes differ.
    """
    if not usable(query):
        rule = "the Triton kernels need an installed triton, an NVIDIA GPU of compute capability 8 or above"
        rule += f", float16, bfloat16 or float32, and a head_dim in {HEAD_DIMS}"
        received = f"query {query.dtype} on {query.device} with head_dim {query.shape[-1]}, triton "
        received += "installed" if INSTALLED else "missing"
        raise ValueError(f"{rule}; received {received}")
    if not query.dtype == key.dtype == value.dtype:
        received = f"query {query.dtype}, key {key.dtype}, value {value.dtype}"
        raise ValueError(f"query, key and value must share one dtype; received {received}")
    alpha, beta = (strength.float().expand(query.shape[1]) for strength in (alpha, beta))
    query, key, value = (_with_dense_rows(tensor) for tensor in (query, key, value))
    return _attend(query, key, value, foreground, alpha, beta, scale)[0]


def _with_dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Triton launches on the current device, whatever device its tensors are on."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@torch.library.custom_op("stmi_layers::triton_attention", mutates_args=())
def _attend(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from stmi_layers.kernels.triton_forward import forward

    with _on_device_of(query):
        return forward(query, key, value, foreground, alpha, beta, scale)


@_attend.register_fake
def _(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, heads, tokens, head_dim = query.shape
    return (
        query.new_empty(batch, tokens, heads, head_dim).transpose(1, 2),
        query.new_empty(batch, heads, 2, tokens, dtype=torch.float32),
        query.new_empty(batch, tokens, dtype=torch.int32),
        query.new_empty(batch, dtype=torch.int32),
    )


@torch.library.custom_op("stmi_layers::triton_attention_backward", mutates_args=())
def _attend_backward(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    normalizers: Tensor,
    order: Tensor,
    counts: Tensor,
    alpha: Tensor,
    beta: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from stmi_layers.kernels.triton_backward import backward

    with _on_device_of(query):
        grad_output = _with_dense_rows(grad_output)
        return backward(grad_output, query, key, value, output, normalizers, order, counts, alpha, beta, scale)


@_attend_backward.register_fake
def _(
    grad_output: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    normalizers: Tensor,
    order: Tensor,
    counts: Tensor,
    alpha: Tensor,
    beta: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    batch, heads, tokens, head_dim = query.shape
    grads = [query.new_empty(batch, tokens, heads, head_dim).transpose(1, 2) for _ in range(3)]
    return grads[0], grads[1], grads[2], alpha.new_empty(heads), beta.new_empty(heads)


def _save(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    query, key, value, _, alpha, beta, ctx.scale = inputs
    ctx.save_for_backward(query, key, value, *output, alpha, beta)


def _differentiate(ctx, grad_output: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = _attend_backward(grad_output, *ctx.saved_tensors, ctx.scale)
    return *grads[:3], None, *grads[3:], None


_attend.register_autograd(_differentiate, setup_context=_save)
