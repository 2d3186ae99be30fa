"""FLOPs of the custom operators for `torch.utils.flop_counter`: as for plain attention, two per multiplication.

The counter is not imported here, because it imports triton. Its registry is filled once the counter is imported.
"""

import sys
from typing import Any

import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack


def attention_flops(query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
    """Count the products of queries and keys, and of weights and values, from the shapes of the arguments."""
    batch, heads, rows, head_dim = query
    return 2 * batch * heads * rows * key[2] * (head_dim + value[3])


def attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *_: object, **__: object) -> int:
    """Count the logits, which are recomputed, and two products each for the weights and the logits."""
    batch, heads, rows, head_dim = query
    return 2 * batch * heads * rows * key[2] * (3 * head_dim + 2 * value[3])


def tell_counters(name: str) -> None:
    """Register the formulas of the operator `name` and its backward pass, also with running counters."""
    counter = sys.modules.get("torch.utils.flop_counter")
    if counter is None or torch.compiler.is_compiling():
        return
    for operator, formula in ((name, attention_flops), (f"{name}_backward", attention_backward_flops)):
        operator = getattr(torch.ops.stmi_layers, operator)
        if operator not in counter.flop_registry:
            counter.register_flop_formula(operator)(formula)
        for mode in _get_current_dispatch_mode_stack():
            registry = getattr(getattr(mode, "counter", mode), "flop_registry", None)
            if registry is not None:
                registry.setdefault(operator, counter.flop_registry[operator])
