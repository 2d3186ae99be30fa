"""Memory of extraction: independent of the number of items, for live tensors and for objects of Python."""

import gc
import tracemalloc
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.data import Dataset

from stmi_layers.training import Facts, Item, Outputs, extract, load_split, open_shards
from toy_method.model import Toy, build
from toy_method.settings import Settings
from toy_runs import DATA

SHARD, BATCH = 8, 4


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations made and somebody still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self.now += tensor.nbytes
                self.most = max(self.most, self.now)
                weakref.finalize(tensor, self._drop, tensor.nbytes)
        return result

    def _drop(self, size: int) -> None:
        self.now -= size


class Endless(Dataset[Any]):
    """The same samples over and over; items are made when they are asked for."""

    def __init__(self, samples: Sequence[Any], items: Sequence[Item], count: int) -> None:
        self.samples, self.items = samples, Items(items, count)

    def __getitem__(self, index: int) -> Any:
        return self.samples[index % len(self.samples)]


class Items(Sequence[Item]):
    """Items over and over, as `examples.listing` reads them from disk."""

    def __init__(self, items: Sequence[Item], count: int) -> None:
        self.items, self.length = items, count

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self.length:
            raise IndexError(index)
        return replace(self.items[index % len(self.items)], name=str(index))


def most_memory(model: Any, dataset: Any, count: int, folder: Path) -> tuple[int, int]:
    """The largest number of bytes, in tensors and in objects of Python, while `count` items are described."""
    samples = [dataset[index] for index in range(BATCH)]
    endless = Endless(samples, dataset.items[:BATCH], count)
    options = {"device": "cpu", "descriptors": ("all",), "shard_size": SHARD, "batch_size": BATCH, "listing": "endless"}
    with LiveBytes() as live:
        extract(model, endless, folder / "tensors", **options)
    gc.collect()
    gc.freeze()  # what other tests have left is not looked at again, so that new cycles are soon found
    threshold = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    tracemalloc.start()
    try:
        extract(model, endless, folder / "objects", **options)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.set_threshold(*threshold)
    assert open_shards(folder / "objects").record.items == count
    return live.most, most


class Hoarder(Toy):
    """A model that keeps its features and what they are called: what the measure has to see."""

    kept: list[Any]

    def forward(self, batch: Any) -> Outputs:
        outputs = super().forward(batch)
        names = [f"item {index}" * 20 for index in range(len(batch.indices))]
        self.kept = [*getattr(self, "kept", []), *outputs.features.values(), *names]
        return outputs


def test_eight_times_the_items_take_no_more_memory(data: Path, tmp_path: Path):
    dataset = load_split(replace(DATA, root=data), "test")
    model = build(Settings(reads_captions=True), Facts(("RGB", "NI"), (16, 16), 5))
    most_memory(model, dataset, SHARD, tmp_path / "first")  # what is loaded once, such as codecs
    few, many = (most_memory(model, dataset, count * SHARD, tmp_path / str(count)) for count in (2, 16))
    shard = SHARD * sum(model.widths.values()) * 4
    assert shard < few[0]
    # Python frees cycles when it has many, which is less than 14 shards of items would take.
    bounds = few[0] + shard / 4, few[1] + 14 * SHARD * 300
    assert many[0] <= bounds[0]
    assert many[1] <= bounds[1]
    model.__class__ = Hoarder
    hoarded = most_memory(model, dataset, 16 * SHARD, tmp_path / "hoarder")
    assert hoarded[0] > bounds[0]
    assert hoarded[1] > bounds[1]
