"""Where half precision would lose the result: softmax, norms, similarities, distances and losses run wider."""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """Cast half precision to float32; leave float32 and float64 as they are."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """Keep autocast from casting products back to half precision inside the block."""
    device = tensor.device.type
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)  # torch 2.6 cannot trace the question
    return torch.autocast(device, enabled=False) if known and torch.is_autocast_enabled(device) else nullcontext()
