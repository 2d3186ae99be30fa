"""`typed`: shape, dtype and device checks at the public boundary, absent while a graph is captured.

`jaxtyping` reads the shapes from the annotations and `beartype` checks them at every eager call (about 20 µs).
Inside `torch.compile`, `torch.export` and the ONNX exporter the undecorated function runs, so that the checks
neither break the graph nor end up in it. Set `JAXTYPING_DISABLE=1` before the import to switch the shape
and dtype checks off; that all tensors share a device is always checked.
"""

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from beartype import BeartypeConf, beartype
from jaxtyping import jaxtyped
from torch import Tensor

Params = ParamSpec("Params")
Result = TypeVar("Result")

# An int is welcome where a float is annotated, as everywhere in Python.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def typed(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Check the annotated shapes and dtypes of `function`, and that its tensors share one device.

    Args:
        function: a function or method whose tensor arguments carry `jaxtyping` annotations.

    Returns:
        The same function with checks in eager mode; the function itself while a graph is captured.

    Raises:
        jaxtyping.TypeCheckError: on the call, when an argument or the result breaks its annotation.
        ValueError: on the call, when tensor arguments live on different devices.
    """
    checked = jaxtyped(typechecker=_check)(function)

    @functools.wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        if torch.compiler.is_compiling():
            return function(*args, **kwargs)
        tensors = [value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)]
        if any(tensor.device != tensors[0].device for tensor in tensors):
            _raise_device_mismatch(function, args, kwargs)
        return checked(*args, **kwargs)

    return wrapper


def _raise_device_mismatch(function: Callable[..., object], args: tuple, kwargs: dict) -> None:
    arguments = inspect.signature(function).bind(*args, **kwargs).arguments
    where = {name: str(value.device) for name, value in arguments.items() if isinstance(value, Tensor)}
    received = ", ".join(f"{name} on {device}" for name, device in where.items())
    raise ValueError(f"{function.__qualname__}: all tensors must be on one device; received {received}")
