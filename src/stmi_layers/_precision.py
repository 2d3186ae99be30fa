"""Precision of softmax, norms, similarities, distances and losses: at least float32, outside of autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

_NOTHING = nullcontext()


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast half precision to float32; leave float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Keep autocast from casting products back to half precision inside the block."""
    return torch.autocast(tensor.device.type, enabled=False) if autocast_enabled(tensor) else _NOTHING


def autocast_enabled(tensor: Tensor) -> bool:
    """Tell whether autocast is on where `tensor` lives; devices such as meta have none."""
    device = tensor.device.type
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)  # torch 2.6 cannot trace it
    return known and torch.is_autocast_enabled(device)


def call_wide(module: nn.Module, tensor: Tensor) -> Tensor:
    """Call a linear layer in at least float32, outside of autocast, as a module: hooks and adapters take effect."""
    with without_autocast(tensor):
        wide = at_least_float32(tensor)
        narrow = {name: own for name, own in module.named_parameters() if own.dtype != wide.dtype}
        if not narrow:
            return module(wide)
        return functional_call(module, {name: own.to(wide.dtype) for name, own in narrow.items()}, (wide,))


def is_plain(linear: nn.Module) -> bool:
    """Tell whether a linear layer is a plain `nn.Linear`: no adapter, not quantised and without hooks."""
    hooks = (linear._forward_hooks, linear._forward_pre_hooks, linear._backward_hooks, linear._backward_pre_hooks)
    return type(linear) is nn.Linear and not any(hooks)


def layer_norm(norm: nn.LayerNorm, tensor: Tensor) -> Tensor:
    """Apply `norm` in at least float32, and return the result in the dtype of `tensor`.

    In bfloat16 on a CPU, torch sums the gradients of weight and bias in bfloat16: the sum stops growing at 256 terms.
    """
    with without_autocast(tensor):
        wide = at_least_float32(tensor)
        weight, bias = (None if part is None else part.to(wide.dtype) for part in (norm.weight, norm.bias))
        return F.layer_norm(wide, norm.normalized_shape, weight, bias, norm.eps).to(tensor.dtype)
