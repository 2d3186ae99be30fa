"""Fast path of the annotation checks: accepts a call whose annotations hold within a few microseconds.

The checks of `jaxtyping` and `beartype` take ten times as long. They alone may refuse a call: every call that is not
accepted here goes to these checks, whether it is wrong or annotated in a way that this file does not read.
"""

import functools
import inspect
import types
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Literal, get_args, get_origin

import torch
from jaxtyping import AbstractArray
from torch import Tensor

Sizes = dict[str, Any]  # the size of an axis by its name; a tuple of sizes for a name of several axes, `*name`
Accepts = Callable[[Any, Sizes], bool]
Axis = tuple[str | int | types.CodeType | None, bool]
WHOLE = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, *WHOLE)


class Acceptance:
    """Recognises arguments and results of `function` that hold their annotations; False means that it cannot tell."""

    def __init__(self, function: Callable[..., Any]) -> None:
        signature = inspect.signature(function)
        parameters = signature.parameters.values()
        named = {item.name: _reader(item.annotation) for item in parameters}
        kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        known = all(item.kind in kinds and named[item.name] for item in parameters)
        self._named: dict[str, Accepts | None] | None = named if known else None
        self._positional = [named[item.name] for item in parameters if item.kind is kinds[0]]
        self._result = _reader(signature.return_annotation)

    def arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any], sizes: Sizes) -> bool:
        """Tell whether the arguments hold their annotations and share a device; write their axes into `sizes`."""
        if self._named is None or len(args) > len(self._positional):
            return False
        device = None
        pairs = [*zip(self._positional, args, strict=False)]
        pairs += [(self._named.get(name), value) for name, value in kwargs.items()]
        for accepts, value in pairs:
            if accepts is None or not accepts(value, sizes):
                return False
            if isinstance(value, Tensor):
                device = device or value.device
                if value.device != device:
                    return False
        return True

    def result(self, value: Any, sizes: Sizes) -> bool:
        """Tell whether the result holds its annotation, given the sizes of the arguments."""
        return self._result is not None and self._result(value, sizes)


def _reader(annotation: Any) -> Accepts | None:
    """Return a function that accepts the values of `annotation`; None for a kind that this file does not read."""
    if annotation is inspect.Parameter.empty:
        return lambda value, sizes: True
    if annotation in (None, types.NoneType):
        return lambda value, sizes: value is None
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (types.UnionType, typing.Union):
        return _union([_reader(part) for part in parts])
    if origin is Literal:
        return (lambda value, sizes: type(value) is str and value in parts) if _all_strings(parts) else None
    if origin is tuple:
        return _tuple([_reader(part) for part in parts]) if Ellipsis not in parts else None
    if not isinstance(annotation, type) or origin is not None or getattr(annotation, "_is_protocol", False):
        return None
    if issubclass(annotation, AbstractArray):
        return _array(annotation)
    kind = (float, int) if annotation is float else annotation  # an int may stand for a float
    return lambda value, sizes: isinstance(value, kind)


def _all_strings(parts: tuple[Any, ...]) -> bool:
    return all(type(part) is str for part in parts)


def _union(readers: list[Accepts | None]) -> Accepts | None:
    def accepts(value: Any, sizes: Sizes) -> bool:
        for reader in readers:
            tried = dict(sizes)
            if reader is not None and reader(value, tried):
                sizes.update(tried)
                return True
        return False

    return accepts if any(readers) else None


def _tuple(readers: list[Accepts | None]) -> Accepts | None:
    def accepts(value: Any, sizes: Sizes) -> bool:
        if not isinstance(value, tuple) or len(value) != len(readers):
            return False
        return all(reader(part, sizes) for reader, part in zip(readers, value, strict=True) if reader is not None)

    return accepts if all(readers) else None


def _array(annotation: type[AbstractArray]) -> Accepts | None:
    """Return a function that accepts tensors by dtype and axes.

    It reads names, numbers, arithmetic, `#name`, and at most one `*name` or `...`.
    """
    axes = annotation.dim_str.split()
    several = [place for place, axis in enumerate(axes) if axis == "..." or axis[0] == "*"]
    if annotation.array_type is not Tensor or len(several) > 1 or any(_is_unread(axis) for axis in axes):
        return None
    place = several[0] if several else len(axes)
    name = axes[place] if several else ""
    front, back = [_axis(axis) for axis in axes[:place]], [_axis(axis) for axis in axes[place + 1 :]]
    fewest, dtypes = len(front) + len(back), _dtypes(annotation.dtype)

    def accepts(value: Any, sizes: Sizes) -> bool:
        if not isinstance(value, Tensor) or value.dtype not in dtypes:
            return False
        shape = value.shape
        more = len(shape) - fewest
        if more < 0 or (more and not several):
            return False
        if not all(map(_fits, front, shape, [sizes] * place)):
            return False
        if not several:
            return True
        if not all(map(_fits, back, shape[place + more :], [sizes] * len(back))):
            return False
        return name == "..." or sizes.setdefault(name, shape[place : place + more]) == shape[place : place + more]

    return accepts


def _is_unread(axis: str) -> bool:
    return any(mark in axis for mark in "?={") or axis.startswith(("*#", "#*", "*_"))


def _axis(text: str) -> Axis:
    """Return the size as a name, number, compiled arithmetic or None (any size), and whether size 1 fits as well."""
    bare = text.removeprefix("#")
    if bare.startswith("_"):
        return None, False
    size = bare if bare.isidentifier() else int(bare) if bare.isdecimal() else compile(bare, "<axis>", "eval")
    return size, bare is not text


def _fits(axis: Axis, size: int, sizes: Sizes) -> bool:
    expected, one_will_do = axis
    if expected is None or (one_will_do and size == 1):
        return True
    if type(expected) is str:
        return sizes.setdefault(expected, size) == size
    if type(expected) is int:
        return expected == size
    return set(expected.co_names) <= sizes.keys() and eval(expected, {}, sizes) == size  # pyright: ignore


@functools.cache
def _dtypes(kind: Any) -> frozenset[torch.dtype]:
    """Return the common dtypes that a kind such as `Float` accepts; complex and quantized dtypes go to `jaxtyping`."""
    return frozenset(dtype for dtype in DTYPES if isinstance(SimpleNamespace(shape=(), dtype=dtype), kind[Any, "..."]))
