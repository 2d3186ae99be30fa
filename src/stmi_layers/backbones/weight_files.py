"""Reading of tensors from files of pretrained weights, without running code from the files.

TorchScript archives, such as OpenAI's, are not passed to `torch.jit.load`, which compiles the program in the archive
and runs its `__setstate__` methods. A pickle describes the tensors of an archive, and the unpickler of this file builds
tensors and nothing else. Torch files go through torch's own `weights_only` loader, so that their safety is that of
torch: before torch 2.10 that loader had a memory-safety flaw. For files that you do not trust, prefer safetensors.
"""

import json
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from stmi_layers._archives import find_damage
from stmi_layers.backbones.weight_kinds import INDEX, UnreadableError, kind_of, shards_of
from stmi_layers.backbones.weight_sets import named_tensors

STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
# OpenAI's archives hold these settings among the weights.
OPENAI_SETTINGS = frozenset({"input_resolution", "context_length", "vocab_size"})


@dataclass(frozen=True)
class WeightFile:
    """Content of a file of weights.

    Attributes:
        kind: "TorchScript archive", "safetensors file", "torch file" or "index of shards".
        tensors: weights by the names in the file.
        quick_gelu: whether the weights were trained with QuickGELU; None when neither the file nor an
            `open_clip_config.json` in its folder tells.
    """

    kind: str
    tensors: dict[str, Tensor]
    quick_gelu: bool | None


def read_weight_file(path: Path, *, trust_pickle: bool) -> WeightFile:
    """Read all tensors of a file, on the CPU.

    Raises:
        FileNotFoundError: when there is no file at `path`.
        ImportError: when the file is a safetensors file and safetensors is not installed.
        ValueError: when the file is damaged, holds no weights, or is a pickle of more than tensors and `trust_pickle`
            is False.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"no weights at {path}; give the path of a .pt, .pth, .bin or .safetensors file, or of an .index.json"
        )
    try:
        kind, tensors = _read(path, trust_pickle=trust_pickle)
    except (ImportError, UnreadableError):
        raise
    # Any exception, because the kind of failure depends on the bytes of a damaged file.
    except Exception as error:
        raise ValueError(f"{path} is damaged or of another kind: {type(error).__name__}, {error}") from error
    is_openai = tensors.keys() >= OPENAI_SETTINGS
    weights = {name: tensor for name, tensor in tensors.items() if name not in OPENAI_SETTINGS}
    if not weights:
        raise ValueError(f"{path} holds no weights: no tensor was found in this {kind}")
    return WeightFile(kind, weights, True if is_openai else _quick_gelu_beside(path))


def _read(path: Path, *, trust_pickle: bool) -> tuple[str, dict[str, Tensor]]:
    """Read a file by its content; except for an index of shards, its name does not matter."""
    if path.name.endswith(INDEX):
        return "index of shards", _read_shards(path, trust_pickle=trust_pickle)
    kind = kind_of(path)
    if kind == "safetensors":
        return "safetensors file", _read_safetensors(path)
    if kind == "zip":
        if damage := find_damage(path):
            raise UnreadableError(f"{path} is damaged: {damage}. Take another copy")
        if root := _torchscript_root(path):
            return "TorchScript archive", _read_torchscript(path, root)
    return "torch file", _read_torch(path, trust_pickle=trust_pickle)


def _read_shards(path: Path, *, trust_pickle: bool) -> dict[str, Tensor]:
    """Return the tensors of all shards that an index names."""
    tensors: dict[str, Tensor] = {}
    for shard, names in shards_of(path).items():
        held = _read(shard, trust_pickle=trust_pickle)[1]
        if absent := [name for name in names if name not in held]:
            raise UnreadableError(f"{shard} lacks {len(absent)} tensors that {path.name} names, such as {absent[0]}")
        tensors |= {name: held[name] for name in names}
    return tensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(f"{path} needs safetensors; from a clone: pip install '.[clip]'") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UnreadableError(f"{path} is damaged or no safetensors file: {error}") from error


def _read_torch(path: Path, *, trust_pickle: bool) -> dict[str, Tensor]:
    try:
        with path.open("rb") as file:  # a path's name would change how torch reads it
            content = torch.load(file, map_location="cpu", weights_only=not trust_pickle)
    # The exception of torch.load depends on the bytes of the file.
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError, LookupError, TypeError) as error:
        advice = (
            ""
            if trust_pickle
            else (
                ", or a pickle of more than tensors, which could run any code during reading; "
                "if you trust the source of the file, pass trust_pickle=True"
            )
        )
        raise UnreadableError(f"{path} is damaged or no torch file{advice}") from error
    return named_tensors(content, path)


def _quick_gelu_beside(path: Path) -> bool | None:
    """Read the activation from open_clip's description of the model, if that is in the folder of the weights."""
    description = path.with_name("open_clip_config.json")
    if not description.is_file():
        return None
    try:
        return bool(json.loads(description.read_text(encoding="utf-8"))["model_cfg"].get("quick_gelu", False))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{description} must be JSON with an object 'model_cfg', as open_clip writes it") from error


def _torchscript_root(path: Path) -> str | None:
    """Return the root folder of a TorchScript archive, with its slash; None for a plain torch file, also a zip."""
    with zipfile.ZipFile(path) as archive:
        names = set(archive.namelist())
    roots = [name.removesuffix("constants.pkl") for name in sorted(names) if name.count("/") == 1]
    return next((root for root in roots if {f"{root}constants.pkl", f"{root}data.pkl"} <= names), None)


def _read_torchscript(path: Path, root: str) -> dict[str, Tensor]:
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{root}data.pkl") as description:
            if f"{root}byteorder" in archive.namelist():
                order = archive.read(f"{root}byteorder").decode()
                if order != sys.byteorder:
                    raise ValueError(f"its numbers are {order}-endian, this machine is {sys.byteorder}-endian")
            return dict(_walk(_TensorUnpickler(description, lambda key: archive.read(f"{root}data/{key}")).load(), ""))
    # Errors of all other kinds get their message in read_weight_file.
    except (pickle.UnpicklingError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UnreadableError(f"{path} is a TorchScript archive that cannot be read: {error}") from error


class _ScriptObject:
    """Replaces an object of any TorchScript class: it has the attributes of the object, and none of its methods."""

    def __setstate__(self, state: object) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors and inert objects; raises an error for any other name in the pickle, before looking it up."""

    def __init__(self, file: Any, read_storage: Callable[[str], bytes]) -> None:
        super().__init__(file)
        self.read_storage = read_storage
        self.storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _ScriptObject
        if module == "torch" and name in STORAGE_DTYPES:
            return STORAGE_DTYPES[name]
        if module == "torch.jit._pickle":  # typed lists, called with their elements and a type tag
            return lambda value, *_: value
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            # A new function each time, because a pickle may set attributes of the object that it gets.
            return lambda *parts: _rebuild(*parts)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no part of a tensor")

    def persistent_load(self, pid: Any) -> Tensor:
        _, dtype, key, _, count = pid
        if key not in self.storages:
            data = bytearray(self.read_storage(key))
            if len(data) != count * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} has {len(data)} bytes, not {count} times {dtype.itemsize}")
            self.storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return self.storages[key]


def _rebuild(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _walk(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, _ScriptObject):
        for attribute, part in value.attributes.items():
            if isinstance(attribute, str):
                yield from _walk(part, f"{name}.{attribute}" if name else attribute)
