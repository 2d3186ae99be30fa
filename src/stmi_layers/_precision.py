"""Precision: softmax, norms, similarities, distances and losses run in at least float32, outside of autocast."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast half precision to float32; leave float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Keep autocast from casting products back to half precision inside the block."""
    return torch.autocast(tensor.device.type, enabled=False) if autocast_enabled(tensor) else nullcontext()


def autocast_enabled(tensor: Tensor) -> bool:
    """Tell whether autocast is on where `tensor` lives; devices such as meta have none."""
    device = tensor.device.type
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)  # torch 2.6 cannot trace the question
    return known and torch.is_autocast_enabled(device)


def layer_norm(norm: nn.LayerNorm, tensor: Tensor) -> Tensor:
    """Apply `norm` in at least float32, and return the dtype of `tensor`.

    In bfloat16 on a CPU, torch sums the gradients of weight and bias one by one in bfloat16: they stop at 256 terms.
    """
    with without_autocast(tensor):
        wide = at_least_float32(tensor)
        weight, bias = (None if part is None else part.to(wide.dtype) for part in (norm.weight, norm.bias))
        return F.layer_norm(wide, norm.normalized_shape, weight, bias, norm.eps).to(tensor.dtype)
