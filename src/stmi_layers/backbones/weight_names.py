"""Matching of names in a weights file with names of a model: prefixes, wrappers, renamed modules."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

# Names of Dinov2 modules in files -> in memory, since transformers 5.
RENAMED = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}

# Name parts that torch.compile, FSDP and checkpoint_wrapper add, also to single blocks.
_WRAPPER = r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
# Also the name parts of DDP and DataParallel, which a module of a model may have as its own name.
_WRAPPER_OR_MODULE = _WRAPPER.replace("_orig_mod", "_orig_mod|module|_forward_module")


def match_names(
    own: Mapping[str, Tensor], stored: Mapping[str, Tensor], prefix: str | None, path: Path
) -> tuple[str, dict[str, str]]:
    """Find the tensors of a model in a file.

    Args:
        own: tensors of the model.
        stored: tensors of the file.
        prefix: prefix of the names in the file; None for the prefix under which most names of the model are found.
        path: path of the file, for messages.

    Returns:
        The prefix, and the name in the file for each name of the model that was found.

    Raises:
        ValueError: when several prefixes fit equally well, no name begins with `prefix`, or the file holds a tensor
            twice, with and without the name of a wrapper.
    """
    found = _match(own, stored, prefix, path, _WRAPPER)
    if len(found[1]) == len(own):
        return found
    try:
        other = _match(own, stored, prefix, path, _WRAPPER_OR_MODULE)
    except ValueError:
        return found
    return other if len(other[1]) > len(found[1]) else found


def _match(
    own: Mapping[str, Tensor], stored: Mapping[str, Tensor], prefix: str | None, path: Path, wrapper: str
) -> tuple[str, dict[str, str]]:
    held = {re.sub(rf"(?:^|(?<=\.)){wrapper}", "", name): name for name in own}
    names = {re.sub(rf"(?<=\.){wrapper}", "", name): name for name in stored}
    if len(names) < len(stored):
        twice = next(name for name in stored if name not in names.values())
        raise ValueError(f"{path} holds {twice} twice, with and without the name of a wrapper: remove one of the two")
    shapes = {name: own[mine].shape for name, mine in held.items()}
    fits = {candidate: _fit(candidate, shapes, names, stored) for candidate in _prefixes(names)}
    if prefix is None:
        prefix = _best(fits, path)
    elif prefix not in fits:
        known = sorted((name for name in fits if fits[name][0]), key=lambda name: fits[name], reverse=True)
        listed = ", ".join(map(repr, known[:5])) or "none"
        raise ValueError(f"prefix must begin names in {path}; received {prefix!r}. Prefixes that fit: {listed}")
    rest = {name.removeprefix(prefix): mine for name, mine in names.items() if name.startswith(prefix)}
    found = {_in_memory(name, held): mine for name, mine in rest.items()}
    return prefix, {mine: found[name] for name, mine in held.items() if name in found}


def part_that_fits(own: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> str | None:
    """Return the part of the model with most tensors in the file, at least half, under their names in that part."""
    parts = {name.rsplit(".", count)[0] for name in own for count in range(1, name.count(".") + 1)}
    held = {part: [name.removeprefix(f"{part}.") for name in own if name.startswith(f"{part}.")] for part in parts}
    found = {part: sum(name in stored for name in names) for part, names in held.items()}
    best = max(sorted(parts), key=lambda part: found[part], default=None)
    return best if best is not None and 2 * found[best] >= max(2, len(held[best])) else None


def _prefixes(names: Mapping[str, str]) -> set[str]:
    prefixes = {""}
    for name in names:
        parts = name.split(".")
        prefixes |= {".".join(parts[:count]) + "." for count in range(1, len(parts))}
    return prefixes


def _fit(
    prefix: str, shapes: Mapping[str, tuple[int, ...]], names: Mapping[str, str], stored: Mapping[str, Tensor]
) -> tuple[int, int]:
    """Count the names of the model that the prefix finds, and the shapes among them that agree."""
    found = [(shape, names[prefix + name]) for name, shape in shapes.items() if prefix + name in names]
    return len(found), sum(stored[name].shape == shape for shape, name in found)


def _best(fits: Mapping[str, tuple[int, int]], path: Path) -> str:
    most = max(fits.values())
    best = sorted((prefix for prefix in fits if fits[prefix] == most), key=lambda prefix: (len(prefix), prefix))
    if len(best) > 1 and most[0]:
        raise ValueError(
            f"{path} holds {most[0]} of the tensors under each of {', '.join(map(repr, best))}: "
            "choose one of them by prefix="
        )
    return best[0]


def _in_memory(name: str, held: Mapping[str, str]) -> str:
    """Return the name in the model of the tensor `name` of the file."""
    for saved, new in RENAMED.items():
        renamed = name.replace(f".{saved}.", f".{new}.")
        if name not in held and renamed in held:
            return renamed
    return name
