"""Sets of weights in a training checkpoint: a single set, or several sets from which the caller chooses."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stmi_layers.backbones.weight_kinds import UnreadableError

DEPTH = 4


def named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the weights of a training checkpoint, where they are stored under a key such as "state_dict".

    Several sets, such as student and teacher or raw and averaged weights, keep their keys as prefixes of the names, so
    that the caller can choose.

    Raises:
        UnreadableError: when `content` holds no names.
    """
    if isinstance(content, torch.nn.Module):
        content = content.state_dict()
    if not isinstance(content, Mapping):
        raise UnreadableError(f"{path} must hold tensors by name; received a {type(content).__name__}")
    own = _tensors(content)
    sets = {name: held for name, value in content.items() if isinstance(name, str) and (held := _set(value))}
    if not sets:
        for name in ("state_dict", "model", "module"):
            if not own and isinstance(content.get(name), Mapping):
                return named_tensors(content[name], path)
    # A copy of a callback is nested deeper; the state that an optimizer holds per parameter is much smaller.
    large = max(map(len, (own, *sets.values())), default=0)
    deep = {name: held for name, held in _deeper(content, "", DEPTH) if name not in sets and 2 * len(held) > large}
    every = {**sets, **deep}
    if len(every) == 1 and not own:
        return next(iter(every.values()))
    return own | {f"{name}.{key}": value for name, held in every.items() for key, value in held.items()}


def _deeper(content: Mapping[Any, Any], where: str, depth: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield all nested sets with their dotted paths, `depth` levels deep."""
    for name, value in content.items() if depth else ():
        if isinstance(name, str) and isinstance(value, Mapping | torch.nn.Module):
            if held := _set(value):
                yield where + name, held
            if isinstance(value, Mapping):
                yield from _deeper(value, f"{where}{name}.", depth - 1)


def _set(value: object) -> dict[str, Tensor]:
    """Return the tensors of a state dict or a module; nothing for any other value."""
    value = value.state_dict() if isinstance(value, torch.nn.Module) else value
    return _tensors(value) if isinstance(value, Mapping) else {}


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
