"""Record of a layer for `layers/test_contract.py`: how to build the layer, and its sizes and masks."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

Inputs = tuple[Tensor, ...]
DIM = 8


class Source(Protocol):
    """Where sizes and masks come from; numbers are normal, in float32 on the CPU."""

    def size(self, low: int, high: int) -> int: ...

    def flags(self, *shape: int) -> Tensor: ...

    def normal(self, *shape: int) -> Tensor: ...


class Fixed:
    """The same sizes in every call, and balanced masks."""

    def size(self, low: int, high: int) -> int:
        return (low + high) // 2

    def flags(self, *shape: int) -> Tensor:
        return torch.arange(torch.Size(shape).numel()).reshape(shape) % 3 > 0

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape)


@dataclass
class Drawn:
    """Sizes and masks that hypothesis draws, and shrinks when something fails."""

    draw: st.DrawFn

    def size(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def flags(self, *shape: int) -> Tensor:
        count = torch.Size(shape).numel()
        return torch.tensor(self.draw(st.lists(st.booleans(), min_size=count, max_size=count))).reshape(shape)

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.draw(st.integers(0, 2**32 - 1))))


@dataclass(frozen=True)
class Case:
    """A layer and what is promised about it.

    Args:
        build: the layer, from `device` and `dtype`.
        inputs: arguments of a forward pass for a batch size, optional ones included.
        shape: shape of the result for these arguments.
        state: names in the state dict: a promise to every checkpoint.
        twin: the same result from public functions, in evaluation.
        width: start of the message for an input of another width; None where every width is right.
        per_sample: samples do not see each other in evaluation.
        random: two results differ in training.
        half_result: dtype of the result for half-precision inputs; None for that of the inputs.
        detached: the gradient goes to the parameters alone.
    """

    build: Callable[..., nn.Module]
    inputs: Callable[[Source, int], Inputs]
    shape: Callable[..., tuple[int, ...]]
    state: tuple[str, ...] = ()
    twin: Callable[..., Tensor] | None = None
    width: str | None = None
    per_sample: bool = True
    random: bool = False
    half_result: torch.dtype | None = None
    detached: bool = False


@dataclass(frozen=True)
class FunctionCase:
    """A public function and what is promised about it.

    Args:
        call: the function, from tensors alone.
        inputs: tensors for a batch size; the batch is their first axis.
        shared: which inputs have no batch axis, by place.
        empty: a batch of none is allowed.
        graph: it can be compiled, exported and mapped by `torch.func.vmap`; functions that return numbers cannot.
        smooth: it has gradients.
        per_sample: samples do not see each other.
        dtype: dtype of the result; None for that of the first input.
    """

    call: Callable[..., Any]
    inputs: Callable[[Source, int], Inputs]
    shared: tuple[int, ...] = ()
    empty: bool = True
    graph: bool = True
    smooth: bool = True
    per_sample: bool = True
    dtype: torch.dtype | None = None


PROJECTIONS = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")


def unchecked(function: Callable[..., Any]) -> Callable[..., Any]:
    """A typed function as it is under `JAXTYPING_DISABLE=1`: an unknown option reaches its own check."""
    return inspect.unwrap(function)


def affine(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}.{part}" for name in names for part in ("weight", "bias"))


HEAD_STATE = ("norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked")
