"""Modulated attention on CUDA: the Triton kernels as one differentiable operator, a single node for the compiler.

The readable reference is [`modulate_logits`][stmi_layers.attention.modulate_logits]. Triton is imported with the first
call; importing this file does not need it.
"""

import importlib.util
import os
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from stmi_layers.kernels.flops import tell_counters
from stmi_layers.kernels.refuse import refuse_second_derivative

HEAD_DIMS = (32, 64, 128)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
INSTALLED = importlib.util.find_spec("triton") is not None
# Triton's own switch: with it, kernels run slowly on CPU tensors.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def usable(query: Tensor) -> bool:
    """Tell whether the kernels support this query, and a key and value of the same kind.

    The kernels need Triton, an NVIDIA GPU of compute capability 8 or above, float16, bfloat16 or float32, and heads of
    width 32, 64 or 128. With `TRITON_INTERPRET=1` in the environment at the import, they also support float16 and
    float32 on CPU.
    """
    if query.device.type == "cuda":
        there = _is_ampere(query.device)
    else:  # the interpreter multiplies the bit patterns of bfloat16
        there = query.device.type == "cpu" and INTERPRETED and query.dtype != torch.bfloat16
    return INSTALLED and there and query.dtype in DTYPES and query.shape[-1] in HEAD_DIMS


def _is_ampere(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_properties(device).major >= 8


def triton_modulated_attention(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """Compute `modulated_attention` without storing a logit, as one operator for autograd and `torch.compile`.

    Memory grows with the number of tokens, not with its square. Logits, softmax and all sums are in float32, strengths
    are read as float32, and the weights are rounded to the dtype of `value` before the product with `value`. Gradients
    are exact and the same in every run; where extrema of a row are tied, one of the tied keys gets the gradient. There
    are no second derivatives.

    Raises:
        ValueError: when the kernels do not support these tensors, see `usable`.
    """
    if not usable(query):
        rule = "the Triton kernels need an installed triton, an NVIDIA GPU of compute capability 8 or above, "
        rule += f"float16, bfloat16 or float32, and a head_dim in {HEAD_DIMS}"
        received = f"query {query.dtype} on {query.device} with head_dim {query.shape[-1]}, triton "
        raise ValueError(f"{rule}; received {received}{'installed' if INSTALLED else 'missing'}")
    alpha, beta = (strength.float().expand(query.shape[1]) for strength in (alpha, beta))
    tell_counters("triton_attention")
    return _attend(query, key, value, foreground, alpha, beta, scale)[0]


def _with_dense_rows(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _on_device_of(tensor: Tensor) -> AbstractContextManager:
    """Make the device of `tensor` current, because Triton launches on the current device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else nullcontext()


@torch.library.custom_op("stmi_layers::triton_attention", mutates_args=())
def _attend(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from stmi_layers.kernels.triton_forward import forward

    with _on_device_of(query):
        query, key, value = (_with_dense_rows(tensor) for tensor in (query, key, value))
        return forward(query, key, value, foreground, alpha, beta, scale)


@torch.library.register_fake("stmi_layers::triton_attention")
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
        query, key, value, grad_output = (_with_dense_rows(tensor) for tensor in (query, key, value, grad_output))
        return backward(grad_output, query, key, value, output, normalizers, order, counts, alpha, beta, scale)


@torch.library.register_fake("stmi_layers::triton_attention_backward")
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


torch.library.register_autograd("stmi_layers::triton_attention", _differentiate, setup_context=_save)
torch.library.register_autograd("stmi_layers::triton_attention_backward", refuse_second_derivative("triton"))
