"""Which implementation of modulated attention runs, in one place."""

from typing import Literal

import torch
from torch import Tensor
from torch.autograd import forward_ad

from stmi_layers.kernels import native, triton_attention

Implementation = Literal["auto", "dense", "tiled", "native", "triton"]

# torch 2.6 cannot tell an export from a compilation: there the dense form serves both.
_exporting = getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)


def choose(implementation: Implementation, query: Tensor, *others: Tensor) -> Implementation:
    """The implementation to run: by the rule in `modulated_attention` for "auto", else the one asked for.

    Args:
        implementation: what the caller asked for.
        query: of the attention, batch heads tokens head_dim.
        others: the other tensors that a derivative may be asked of.

    Raises:
        ValueError: when the one asked for cannot run on these tensors. The rules of
            native and triton are checked where they run.
    """
    transform = _transform(query, *others)
    if implementation == "auto":
        return "dense" if transform else _fastest(query)
    if implementation == "tiled" and not query.is_cpu:
        raise ValueError(f'implementation="tiled" is for CPU tensors; received query on {query.device}')
    if implementation != "dense" and transform:
        raise ValueError(f'implementation="{implementation}" cannot run inside {transform}; use "auto" or "dense"')
    return implementation


def _fastest(query: Tensor) -> Implementation:
    if torch.compiler.is_compiling() and _exporting():
        return "dense"  # an exported graph must run where this package is not installed
    if not query.is_cpu:
        return "triton" if triton_attention.usable(query) else "dense"
    return "native" if native.usable(query) else "tiled"


def _transform(*tensors: Tensor) -> str:
    """The transform, if one is active, that sees into torch's own operators only."""
    if torch.compiler.is_compiling():
        return ""
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func"
    if any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors):
        return "forward-mode differentiation"
    return ""
