"""Record of the tensors of a released file: taken by a model, or left out for a reason."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stmi_layers.backbones.weight_files import read_weight_file
from stmi_layers.training.messages import shorten

State = dict[str, Tensor]


class Release:
    """Named tensors of a released file; each is taken once, or left out for a reason.

    Args:
        tensors: tensors by name. A prefix `module.` of all names, from data parallelism, is dropped.
        where: name of the file, for messages.

    Raises:
        ValueError: when a tensor has values that are not finite.
    """

    def __init__(self, tensors: State, where: object = "the release") -> None:
        if all(name.startswith("module.") for name in tensors):
            tensors = {name.removeprefix("module."): value for name, value in tensors.items()}
        self.where = where
        self.names = {id(value): name for name, value in tensors.items()}  # to name tensors in messages
        self._tensors, self._open = dict(tensors), set(tensors)
        self.left: dict[str, list[str]] = {}
        broken = [name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()]
        if broken:
            raise ValueError(f"{where} must hold finite numbers; these do not: {shorten(broken)}")

    def has(self, prefix: str) -> bool:
        """Tell whether a name begins with `prefix`."""
        return any(name.startswith(prefix) for name in self._tensors)

    def take(self, name: str) -> Tensor:
        """Take one tensor.

        Raises:
            ValueError: when the file lacks the tensor.
        """
        if name not in self._tensors:
            raise ValueError(f"{self.where} must hold {name!r}; it holds {shorten(self._tensors)}")
        self._open.discard(name)
        return self._tensors[name]

    def part(self, prefix: str) -> State:
        """Take the remaining tensors whose names begin with `prefix`, and drop the prefix from their names."""
        names = [name for name in self._tensors if name in self._open and name.startswith(prefix)]
        self._open -= set(names)
        return {name.removeprefix(prefix): self._tensors[name] for name in names}

    def leave(self, pattern: str, reason: str) -> None:
        """Leave out all tensors whose names begin with a match of `pattern`, and record the reason."""
        names = [name for name in self._tensors if name in self._open and re.match(pattern, name)]
        if names:
            self.left.setdefault(reason, []).extend(names)
            self._open -= set(names)

    def head(self, norm: str, classifier: str) -> State:
        """Take a batch norm and the classifier after it, under the names of `IdentityHead`."""
        taken = {f"norm.{name}": value for name, value in self.part(f"{norm}.").items()}
        return {**taken, "classifier.weight": self.take(f"{classifier}.weight")}

    def refuse_rest(self) -> None:
        """Refuse a file with tensors that were neither taken nor left out.

        Raises:
            ValueError: naming the tensors.
        """
        if rest := [name for name in self._tensors if name in self._open]:
            raise ValueError(
                f"{self.where} holds {len(rest)} tensors that this method does not know: {shorten(rest)}. It is "
                "of another method, of another version of its code, or trained with parts that are not supported"
            )


class TowerPart(NamedTuple):
    """An image tower of a released file.

    Attributes:
        library: library whose model has the same names, "open_clip" or "timm".
        tensors: state of the library's model.
        cameras: released camera embeddings, (cameras width), or None.
        scale: factor of the embeddings, which is not in the file.
    """

    library: str
    tensors: State
    cameras: Tensor | None
    scale: float


class Carried(NamedTuple):
    """A released file in the names of our model.

    Attributes:
        settings: settings of the run, inferred from names and shapes, or known of the release.
        towers: image towers by name of the model's submodule.
        model: state of the rest of the model.
        heads: state of an `IdentityHead` by feature.
        kept: reasons why parts of the model keep their initial values, by prefix of their names.
        identities: names in `model` that have a row per identity.
        notes: differences between the result and the release.
    """

    settings: dict[str, Any]
    towers: dict[str, TowerPart]
    model: State
    heads: dict[str, State]
    kept: Mapping[str, str] = {}
    identities: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_release(path: Path, *, trust_pickle: bool = False) -> Release:
    """Read a torch or safetensors file, whose weights may be under `state_dict` or `model`.

    Args:
        path: file to read.
        trust_pickle: read a torch file that holds more than tensors, which can run any code. If False, no code is run.

    Raises:
        FileNotFoundError: when the file does not exist.
        ValueError: when the file cannot be read.
    """
    tensors = read_weight_file(path, trust_pickle=trust_pickle).tensors
    return Release({name: _float32(value) for name, value in tensors.items()}, path)


def _float32(value: Tensor) -> Tensor:
    return value.to(torch.float32) if value.is_floating_point() else value
