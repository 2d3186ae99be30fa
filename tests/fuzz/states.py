"""Variants of checkpoints and of files of pretrained weights, and the outcome of loading them."""

import copy
import functools
import tempfile
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor, nn

from examples.restore import restore
from examples.train import train
from sets import tiny
from stmi_layers.backbones import load_weights
from stmi_layers.training import Machine, read_checkpoint
from stmi_layers.training.checkpoint import FORMAT

from .truth import Variant, write_base

MACHINE = Machine(device="cpu", threads=1, quiet=True)
VALUES = (None, True, 0, 1, -1, 3, 1.5, "x", "", b"x", [], {}, [1], {"a": 1}, torch.ones(2), torch.tensor(float("nan")))
SETTINGS = {
    "modalities": ("RGB", "TI"),
    "captions": "optional",
    "epochs": 1,
    "warmup_epochs": 0.5,
    "identities_per_batch": 2,
    "images_per_identity": 2,
}


@functools.cache
def trained() -> tuple[tempfile.TemporaryDirectory, bytes]:
    """A set, kept until the process ends, and the checkpoint of a run on it."""
    folder = tempfile.TemporaryDirectory(prefix="fuzz-")
    root = Path(folder.name)
    write_base(root / "set")
    train(tiny(root / "set", **SETTINGS), root / "run")
    return folder, (root / "run" / "checkpoint.pt").read_bytes()


def checkpoint(variant: Variant, random: Random) -> str | None:
    """A checkpoint with an entry of another type or value, gone, or too many, or damaged bytes; a fault or None."""
    folder, whole = trained()
    variant.names = ("checkpoint.pt", "resume", folder.name)
    path = variant.root / "checkpoint.pt"
    path.write_bytes(whole)
    if random.random() < 0.3:
        variant.what = "checkpoint: " + damage(path, random)
        expected = read_checkpoint(Path(folder.name) / "run" / "checkpoint.pt").model
    else:
        content = {"format": FORMAT, **read_checkpoint(path)._asdict()}
        variant.what = "checkpoint: " + mutate(content, random)
        torch.save(content, path)
        expected = content.get("model")
    if random.random() < 0.3:
        variant.what += ", resumed"
        run = tiny(Path(folder.name) / "set", **SETTINGS | {"epochs": 2 if random.random() < 0.5 else 1})
        train(run, variant.root, resume=True)
        return None
    read = restore(path, machine=MACHINE)
    state = read.model.state_dict()
    return None if _equal(state, expected) else "other weights than those of the file"


def damage(path: Path, random: Random) -> str:
    """Change bytes of a file; say how."""
    data = bytearray(path.read_bytes())
    way = random.choice(("cut", "bit", "page", "longer"))
    if way == "cut":
        del data[random.randrange(len(data)) :]
    elif way == "bit":
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif way == "page":
        start = random.randrange(len(data))
        data[start : start + 4096] = bytes(len(data[start : start + 4096]))
    else:
        data += random.randbytes(20)
    path.write_bytes(data)
    return way


def mutate(content: Any, random: Random, values: Sequence[Any] = VALUES) -> str:
    """Change one value somewhere in nested dicts and lists; say where."""
    place, value, where = content, random.choice(values), []
    while True:
        key = random.choice(list(place) if isinstance(place, dict) else range(len(place)))
        where.append(str(key))
        inside = place[key]
        if not isinstance(inside, dict | list) or not inside or random.random() < 0.25:
            break
        place = inside
    way = random.choice(("gone", "other", "other", "more", "shape"))
    if way == "gone":
        del place[key]
    elif way == "more" and isinstance(place, dict):
        place["more"] = value
    elif way == "shape" and isinstance(inside, Tensor):
        place[key] = random.choice((inside[..., None], inside.long(), inside.to(torch.complex64), inside.double()))
    else:
        way, place[key] = f"{value!r:.20}", copy.deepcopy(value)
    return f"{'.'.join(where)} is {way}"


def _equal(state: dict[str, Tensor], expected: Any) -> bool:
    if not isinstance(expected, dict) or state.keys() != expected.keys():
        return False
    return all(torch.equal(value, expected[name].to(value.dtype)) for name, value in state.items())


def _model(generator: torch.Generator | None = None) -> nn.Module:
    blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)) for _ in range(2)])
    model = nn.ModuleDict({"stem": nn.Linear(2, 3), "blocks": blocks})
    for parameter in model.parameters():
        nn.init.normal_(parameter, generator=generator)
    return model


def weights(variant: Variant, random: Random) -> str | None:
    """A file of pretrained weights, wrapped, nested, doubled, cast, or damaged; a fault or None."""
    generator = torch.Generator().manual_seed(random.randrange(1000))
    state = {name: value.clone() for name, value in _model(generator).state_dict().items()}
    expected: dict[str, Tensor] | None = dict(state)
    way = random.choice(
        (
            *("plain", "prefix", "wrapped", "two", "two sets", "callback", "half", "shape", "gone", "more"),
            *("whole numbers", "NaN", "lora"),
        )
    )
    prefix: str | None = None
    content: Any = state
    if way == "prefix":
        content = {
            random.choice(("module.", "_orig_mod.module.", "a.b.c.")) + name: value for name, value in state.items()
        }
    elif way == "wrapped":
        wrapper = random.choice(("_orig_mod", "module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
        content = {name.replace("blocks.1.", f"blocks.1.{wrapper}."): value for name, value in state.items()}
    elif way in ("two", "two sets"):
        pair = random.choice(
            (("student", "teacher"), ("model", "model_ema"), ("RGB.base", "TI.base"), ("module", "ema"))
        )
        other = {name: value + 1 for name, value in state.items()}
        prefix = random.choice((None, f"{pair[1]}."))
        expected = None if prefix is None else other
        both = dict(zip(pair, (state, other), strict=True))
        content = (
            both if way == "two sets" else {f"{one}.{n}": v for one, named in both.items() for n, v in named.items()}
        )
    elif way == "callback":
        averaged = {name: value + 1 for name, value in state.items()}
        prefix = random.choice((None, "callbacks.ema."))
        expected = None if prefix is None else averaged
        content = {"state_dict": state, "callbacks": {"ema": averaged}}
    elif way == "lora":
        content = {name.replace("blocks.1.0.", "blocks.1.0.base_layer."): value for name, value in state.items()}
        content["blocks.1.0.lora_A.default.weight"] = torch.ones(1, 3)
        expected = None
    elif way == "half":
        content = {name: value.half() for name, value in state.items()}
        expected = {name: value.half().float() for name, value in state.items()}
    elif way == "shape":
        content = {**state, "stem.weight": torch.ones(3, 5)}
    elif way == "gone":
        content = {name: value for name, value in state.items() if name != "blocks.0.1.bias"}
    elif way == "more":
        content = {**state, "head.weight": torch.ones(4, 3), "head.bias": torch.ones(4)}
    elif way == "whole numbers":
        content = {**state, "stem.weight": torch.ones(3, 2, dtype=torch.int64)}
        expected = None
    elif way == "NaN":
        content = {**state, "stem.bias": torch.full((3,), torch.nan)}
        expected = None
    if way in ("shape", "gone"):
        expected = None
    kind = random.choice(("pt", "pt", "old pt", "safetensors"))
    nested = way in ("two sets", "callback")
    path = variant.root / ("w.safetensors" if kind == "safetensors" and not nested else "w.pt")
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file({name: value.contiguous() for name, value in content.items()}, path)
    else:
        nest = random.choice((None, None, "state_dict", "model"))
        content = {nest: content, "epoch": 3, "optimizer": {"state": {}}} if nest and not nested else content
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old pt")
    variant.what, variant.names = f"weights: {way}, {kind}", (path.name,)
    if random.random() < 0.3:
        variant.what += ", " + damage(path, random)
        damaged = True
    else:
        damaged = False
    model = _model()
    load_weights(model, path, prefix=prefix)
    if damaged and (path.suffix == ".safetensors" or kind == "old pt"):  # formats without checksums cannot tell
        return None
    return None if _equal(model.state_dict(), expected) else "other weights than those of the file"
