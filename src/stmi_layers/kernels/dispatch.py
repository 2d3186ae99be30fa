"""Choice of the implementation of modulated attention."""

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stmi_layers._checks import check_choice
from stmi_layers._typing import tracing
from stmi_layers.kernels.dense import dense_attention
from stmi_layers.kernels.native import check_native, native_attention
from stmi_layers.kernels.tiled import tiled_attention
from stmi_layers.kernels.triton_attention import triton_modulated_attention
from stmi_layers.kernels.widened import widened_attention

Implementation = Literal["auto", "dense", "tiled", "widened", "native", "triton"]
FORMS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]] = {
    "dense": dense_attention,
    "tiled": tiled_attention,
    "widened": widened_attention,
    "native": native_attention,
    "triton": triton_modulated_attention,
}

NAMES = get_args(Implementation)

# torch 2.6 cannot tell an export from a compilation: there the dense form serves both.
_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def check_implementation(implementation: str) -> None:
    """Refuse the name of an implementation that does not exist."""
    check_choice("implementation", implementation, NAMES)


def implementation_for(
    implementation: Implementation, query: Tensor, *others: Tensor
) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float], Tensor]:
    """Return the implementation to run: the named one, or for "auto" the one by the rule in `modulated_attention`.

    Args:
        implementation: name of the implementation, or "auto".
        query: query of the attention, (batch heads tokens head_dim).
        others: further tensors that may need a derivative.

    Raises:
        ValueError: when there is no such implementation, or it cannot run on these tensors. The Triton implementation
            checks its own rules when it runs.
        RuntimeError: when the native implementation is asked for, and is not built.
    """
    return FORMS[_choose(implementation, query, *others)]


def _choose(implementation: Implementation, query: Tensor, *others: Tensor) -> Implementation:
    check_implementation(implementation)
    if implementation == "dense":
        return implementation
    transform = _transform(query, *others)
    if implementation == "auto":
        return "dense" if transform else _fastest(query)
    if implementation == "tiled" and not query.is_cpu:
        raise ValueError(f'implementation="tiled" is for CPU tensors; received query on {query.device}')
    if implementation == "native" and _saving():
        transform = "a graph that is exported or traced"
    if transform and implementation != "widened":
        raise ValueError(f'implementation="{implementation}" cannot run inside {transform}; use "auto" or "dense"')
    if implementation == "native":
        check_native(query)
    return implementation


def _fastest(query: Tensor) -> Implementation:
    if _saving():
        return "dense"
    return "tiled" if query.is_cpu else "widened"


def _saving() -> bool:
    """Tell whether a graph is captured to be saved, which must run where this package is not installed."""
    return tracing() or (torch.compiler.is_compiling() and _exporting())


def _transform(*tensors: Tensor) -> str:
    """Return the name of an active transform that supports only torch's own operators; "" when there is none."""
    if torch.compiler.is_compiling():
        return ""
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func"
    dual = forward_ad._current_level >= 0
    if dual and any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        return "forward-mode differentiation"
    return ""
