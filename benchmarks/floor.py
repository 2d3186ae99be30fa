"""Matrix products of a call without the rest: the lower bound of its time."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.runner import Contender, Outputs

PRODUCTS = (
    torch.ops.aten.mm,
    torch.ops.aten.addmm,
    torch.ops.aten.bmm,
    torch.ops.aten.baddbmm,
    torch.ops.aten.convolution,
    torch.ops.aten.convolution_backward,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward,
)


class _Recording(TorchDispatchMode):
    """Recorder of the products that run inside the block, with their operands."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple, dict]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func.overloadpacket in PRODUCTS:
            self.calls.append((func, args, kwargs or {}))
        return func(*args, **(kwargs or {}))


def products_alone(call: Callable[[], Outputs]) -> Contender:
    """Repeat the products that `call` computes, on the same operands, and nothing else."""
    with _Recording() as recording:
        call()

    def repeat() -> Outputs:
        with torch.no_grad():
            for func, args, kwargs in recording.calls:
                func(*args, **kwargs)
        return ()

    return Contender(repeat)
