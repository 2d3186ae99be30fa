"""Shards: descriptors and their items on disk, in files that each fit into memory.

    extraction.json                the model, the descriptors, and the number of items
    shards/00000000.safetensors    descriptors by name, (rows width) in float32; the items as columns in its metadata

A shard is written whole or not at all. The rows of all shards, in the order of their names, are the rows of the index.
"""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stmi_layers._checks import check_positive
from stmi_layers.training.files import write_text, write_whole
from stmi_layers.training.messages import printable
from stmi_layers.training.record import PLAIN as FIELDS
from stmi_layers.training.record import Item, item_of, plain_value
from stmi_layers.training.settings import from_dict

FORMAT = "stmi-layers-extraction-1"
RECORD = "extraction.json"


@dataclass(frozen=True)
class Extraction:
    """Record of an extraction, needed to continue and to search it.

    Attributes:
        fingerprint: digest of the weights of the model.
        widths: width of every descriptor that is kept, by name.
        items: number of items to describe.
        shard_size: items per shard; the last shard may have fewer.
        listing: digest of the names of all items, in their order.
        notes: plain values kept for the caller, such as the path of a checkpoint.
    """

    fingerprint: str
    widths: Mapping[str, int]
    items: int
    shard_size: int
    listing: str
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_shards(self) -> int:
        """Number of shards that the items fill."""
        return -(-self.items // self.shard_size)


def fingerprint(model: nn.Module) -> str:
    """Return a digest of the names, shapes and values of all parameters and buffers of a model."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        value = value.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def shard_path(folder: Path, number: int) -> Path:
    """Return the file of a shard."""
    return folder / "shards" / f"{number:08}.safetensors"


def write_record(folder: Path, record: Extraction) -> None:
    """Write the record of an extraction, or compare it with the one that is there.

    Raises:
        ValueError: when the folder holds another extraction; the message names what differs.
    """
    path = folder / RECORD
    new = json.loads(json.dumps({"format": FORMAT, **asdict(record)}))
    if not path.exists():
        write_text(path, json.dumps(new, indent=1) + "\n")
        return
    old = _read_json(path)
    changed = "; ".join(_changes(old, new))
    if changed:
        raise ValueError(f"{folder} holds another extraction ({changed}); choose another folder")


def _changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Name the entries that differ, with both values."""
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _changes(before, after)
        elif before != after:
            yield f"{name} {str(before)[:200]} -> {str(after)[:200]}"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not a record of an extraction in the format {FORMAT!r}")
    return content


def write_shard(
    path: Path, descriptors: Mapping[str, Tensor], items: Sequence[Item], left_out: Mapping[str, str]
) -> None:
    """Write a shard.

    Args:
        path: file of the shard.
        descriptors: a row per item, by name.
        items: item of each row.
        left_out: reasons by name of the item that could not be read.
    """
    from safetensors.numpy import save

    # safetensors writes arrays that are not contiguous with wrong rows.
    arrays = {name: np.ascontiguousarray(rows.float().numpy()) for name, rows in descriptors.items()}
    columns = {name: [plain_value(getattr(item, name)) for item in items] for name in FIELDS}
    texts = {"names": [item.name for item in items], "columns": columns, "left_out": dict(left_out)}
    metadata = {name: json.dumps(value) for name, value in texts.items()}
    with write_whole(path) as file:
        file.write(save(arrays, metadata))


@dataclass(frozen=True)
class Shards:
    """Shards of a finished extraction.

    Attributes:
        folder: folder of the extraction.
        record: record of the extraction.
    """

    folder: Path
    record: Extraction

    def __len__(self) -> int:
        return self.record.num_shards

    @cached_property
    def starts(self) -> list[int]:
        """First row of every shard, and the number of all rows; items that were left out have no row."""
        counts = [len(self.vectors(number, name)) for number in range(len(self)) for name in [*self.record.widths][:1]]
        return [0, *accumulate(counts)]

    def vectors(self, number: int, name: str) -> Tensor:
        """Return the descriptors of a shard, (rows width), read from the disk on first use."""
        self.refuse_unknown(name)
        with self._opened(number) as shard:
            vectors = shard.get_tensor(name)
            width = self.record.widths[name]
            if vectors.ndim != 2 or vectors.shape[1] != width or vectors.dtype != torch.float32:
                raise ValueError(
                    f"{name} must be rows of {width} float32; it is {tuple(vectors.shape)}, {vectors.dtype}"
                )
            return vectors

    def items(self, number: int) -> list[Item]:
        """Return the items of a shard, in the order of its rows."""
        with self._opened(number) as shard:
            metadata = shard.metadata()
            names, columns = json.loads(metadata["names"]), json.loads(metadata["columns"])
            described = shard.get_slice(next(iter(self.record.widths))).get_shape()[0]
            if described != len(names):
                raise ValueError(f"{described} descriptors must be of as many items; there are {len(names)}")
            rows = zip(*(columns[name] for name in FIELDS), strict=True)
            items = [
                item_of({"name": name, **dict(zip(FIELDS, row, strict=True))})
                for name, row in zip(names, rows, strict=True)
            ]
            if len({len(item.images) for item in items}) > 1:
                raise ValueError("items must have as many images as one another, None where one is missing")
            return items

    def left_out(self) -> dict[str, str]:
        """Return the reasons by name of the items that could not be read."""
        found: dict[str, str] = {}
        for number in range(len(self)):
            with self._opened(number) as shard:
                found |= json.loads(shard.metadata()["left_out"])
        return found

    def all_items(self) -> Iterator[Item]:
        """Yield all items, in the order of the rows, a shard at a time."""
        for number in range(len(self)):
            yield from self.items(number)

    def items_at(self, rows: Sequence[int]) -> dict[int, Item]:
        """Return items by row; every shard that holds one of the rows is opened once."""
        by_shard: dict[int, list[int]] = {}
        for row in sorted(set(rows)):
            by_shard.setdefault(bisect_right(self.starts, row) - 1, []).append(row)
        found: dict[int, Item] = {}
        for number, wanted in by_shard.items():
            items = self.items(number)
            found |= {row: items[row - self.starts[number]] for row in wanted}
        return found

    def refuse_unknown(self, name: str) -> None:
        """Refuse a name that is not among the descriptors."""
        if name not in self.record.widths:
            raise ValueError(f"{self.folder} has the descriptors {list(self.record.widths)}; received {name!r}")

    @contextmanager
    def _opened(self, number: int) -> Iterator[Any]:
        """Open a shard; any error in the shard, or in what is read from it, names its path."""
        from safetensors import SafetensorError, safe_open

        path = shard_path(self.folder, number)
        try:
            yield safe_open(path, "pt")
        except (OSError, SafetensorError, LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            said = f"{type(error).__name__}, {printable(error)}"
            raise ValueError(f"{path} cannot be read as a shard: {said}; remove it and extract again") from error


def open_shards(folder: Path) -> Shards:
    """Open a finished extraction.

    Raises:
        FileNotFoundError: when the folder holds no extraction.
        ValueError: when some shards are missing, or the record cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no {RECORD}: it is not the folder of an extraction")
    content = _read_json(path)
    del content["format"]
    try:
        record = from_dict(Extraction, content)
        check_positive(items=record.items, shard_size=record.shard_size, widths=min(record.widths.values(), default=0))
    except ValueError as error:
        raise ValueError(f"{path} is not a record of an extraction: {error}") from error
    missing = [number for number in range(record.num_shards) if not shard_path(folder, number).is_file()]
    if missing:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {record.num_shards} shards, the first is {missing[0]}: the extraction "
            "is not finished; run the same command again to continue it"
        )
    return Shards(folder, record)
