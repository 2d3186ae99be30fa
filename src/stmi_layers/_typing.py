"""`typed`: shape, dtype and device checks at the public boundary, absent while a graph is captured.

`jaxtyping` reads the shapes from the annotations and `beartype` checks them at every eager call. A valid call is
accepted before both run, in some 10 µs per layer (`python -m benchmarks --only checks`); every other call goes to both.
Inside `torch.compile`, `torch.export`, `torch.jit.trace` and the ONNX exporters the undecorated function runs, so that
the checks neither break the graph nor end up in it. A checked function of this package calls other functions of this
package without checks, so that a layer checks its arguments once. Set `JAXTYPING_DISABLE=1` before the import to switch
off the checks of shape and dtype; the check that all tensors share one device stays on.
"""

import functools
import inspect
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from beartype import BeartypeConf, beartype
from jaxtyping import config, jaxtyped
from torch import Tensor

from stmi_layers._acceptance import Acceptance, Sizes

Params = ParamSpec("Params")
Result = TypeVar("Result")

# An int is accepted where a float is annotated, as everywhere in Python.
_check = beartype(conf=BeartypeConf(is_pep484_tower=True))


class _Thread(threading.local):
    """State of a thread: whether a checked function of this package is running."""

    inside = False


_thread = _Thread()


def capturing() -> bool:
    """Tell whether a graph is being captured, by `torch.compile`, an exporter or `torch.jit.trace`."""
    return torch.compiler.is_compiling() or tracing()


def tracing() -> bool:
    """Tell whether `torch.jit.trace` runs, alone or inside the older ONNX exporter."""
    return torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]


def typed(function: Callable[Params, Result]) -> Callable[Params, Result]:
    """Check the annotated shapes and dtypes of `function`, and that its tensors share one device.

    Args:
        function: a function or method whose tensor arguments carry `jaxtyping` annotations.

    Returns:
        The function with checks in eager mode and without checks while a graph is captured. A function of
        `stmi_layers` runs unchecked when another function of `stmi_layers` calls it; your own functions are checked
        in every eager call.

    Raises:
        jaxtyping.TypeCheckError: on the call, when an argument or the result breaks its annotation.
        ValueError: on the call, when tensor arguments live on different devices.

    Examples:
        >>> from jaxtyping import Float
        >>> @typed
        ... def double(tokens: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        ...     return 2 * tokens
        >>> double(torch.ones(1, 1, 2))
        tensor([[[2., 2.]]])
    """
    checked = jaxtyped(typechecker=_check)(function)
    ours = function.__module__.startswith("stmi_layers.")
    acceptance = functools.cache(lambda: Acceptance(function))

    @functools.wraps(function)
    def wrapper(*args: Params.args, **kwargs: Params.kwargs) -> Result:
        if capturing() or (ours and _thread.inside):
            return function(*args, **kwargs)
        sizes: Sizes = {}
        accepted = acceptance().arguments(args, kwargs, sizes)
        if not accepted:
            _check_devices(function, args, kwargs)
        outer, _thread.inside = _thread.inside, ours
        try:
            if accepted:
                result = function(*args, **kwargs)
                if acceptance().result(result, sizes) or config.jaxtyping_disable:
                    return result
            return checked(*args, **kwargs)  # repeats the call, if its result was not accepted
        finally:
            _thread.inside = outer

    return wrapper


def _check_devices(function: Callable[..., object], args: tuple, kwargs: dict) -> None:
    devices = {value.device for value in (*args, *kwargs.values()) if isinstance(value, Tensor)}
    if len(devices) > 1:
        arguments = inspect.signature(function).bind(*args, **kwargs).arguments
        where = {name: str(value.device) for name, value in arguments.items() if isinstance(value, Tensor)}
        received = ", ".join(f"{name} on {device}" for name, device in where.items())
        raise ValueError(f"{function.__qualname__}: all tensors must be on one device; received {received}")
