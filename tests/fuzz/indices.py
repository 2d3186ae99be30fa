"""Variants of an index of descriptors: its record, its listing, and its shards."""

import functools
import json
import shutil
from pathlib import Path
from random import Random

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from examples.extract import Arguments as Extract
from examples.extract import main as extract
from examples.restore import Computer
from examples.search.__main__ import Arguments, main

from .states import damage, mutate, trained
from .truth import MODALITIES, Variant

COMPUTER = Computer(device="cpu", threads=1)
VALUES = (None, True, 0, 1, -1, 3, 1.5, "x", "", [], {}, [1], {"a": 1}, [["/dev/zero", 0, 3]], "\x1b[2J")


@functools.cache
def described() -> Path:
    """An index of the training split of the set, kept until the process ends."""
    root = Path(trained()[0].name)
    checkpoint, images = root / "run" / "checkpoint.pt", (str(root / "set" / "train"),)
    extract(Extract(checkpoint, images, root / "index", shard_size=3, machine=COMPUTER))
    return root / "index"


def index(variant: Variant, random: Random) -> str | None:
    """An index with a changed record, listing or shard, searched, or continued; a fault or None."""
    folder = variant.root / "index"
    shutil.copytree(described(), folder)
    root = described().parent
    variant.names = (str(folder), str(root), "extraction.json", "items.jsonl", "safetensors", "no checkpoint at")
    part = random.choice(("record", "listing", "shard", "damage"))
    variant.what = f"index: {part}"
    CHANGES[part](variant, folder, random)
    if random.random() < 0.3:
        variant.what += ", continued"
        images = (str(root / "set" / "train"),)
        extract(Extract(root / "run" / "checkpoint.pt", images, folder, shard_size=3, machine=COMPUTER))
        return None
    name = "000001_cam1_0.png"
    query = tuple(f"{modality}={root / 'set' / 'train' / modality / name}" for modality in MODALITIES)
    main(Arguments(folder, query, masks="ones", machine=COMPUTER))
    return None


def _record(variant: Variant, folder: Path, random: Random) -> None:
    content = json.loads((folder / "extraction.json").read_text())
    variant.what += ", " + mutate(content, random, VALUES)
    (folder / "extraction.json").write_text(json.dumps(content))


def _listing(variant: Variant, folder: Path, random: Random) -> None:
    lines = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    variant.what += ", " + mutate(lines, random, VALUES)
    (folder / "items.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _shard(variant: Variant, folder: Path, random: Random) -> None:
    path = random.choice(sorted((folder / "shards").iterdir()))
    with safe_open(path, "pt") as shard:
        # In an order that does not change from process to process.
        texts = {name: json.loads(text) for name, text in sorted(shard.metadata().items())}
        tensors = {name: shard.get_tensor(name) for name in sorted(shard.keys())}
    name = next(iter(tensors))
    way = random.choice(("metadata", "metadata", "rows", "width", "kind", "name", "none"))
    if way == "metadata":
        way = mutate(texts, random, VALUES)
    elif way == "rows":
        tensors[name] = tensors[name][:-1].clone()
    elif way == "width":
        tensors[name] = tensors[name][:, :-1].clone()
    elif way == "kind":
        tensors[name] = tensors[name].to(random.choice((torch.int64, torch.float64, torch.bool)))
    elif way == "name":
        tensors = {"other": tensors[name]}
    metadata = None if way == "none" else {key: json.dumps(value) for key, value in texts.items()}
    save_file(tensors, path, metadata)
    variant.what += f", {way}"


def _damage(variant: Variant, folder: Path, random: Random) -> None:
    path = random.choice([folder / "extraction.json", folder / "items.jsonl", *sorted((folder / "shards").iterdir())])
    variant.what += f", {path.name} {damage(path, random)}"


CHANGES = {"record": _record, "listing": _listing, "shard": _shard, "damage": _damage}
