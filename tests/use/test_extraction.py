"""Extraction: shards written while it runs, none twice on resumption, and refused input instead of silent loss."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import Dataset

from stmi_layers.training import Facts, Item, Outputs, Panel, describe, extract, load_split, open_shards, unlabelled
from stmi_layers.training.files import locked
from stmi_layers.training.record import item_of, plain_item
from stmi_layers.training.shards import FORMAT, Shards, fingerprint, shard_path, write_shard
from toy_method.model import Toy, build
from toy_method.settings import Settings
from toy_runs import DATA


@pytest.fixture
def model() -> Toy:
    return build(Settings(reads_captions=True), Facts(("RGB", "NI"), (16, 16), 5))


@pytest.fixture
def dataset(data: Path):
    return load_split(replace(DATA, root=data), "test")


class Counting(Dataset[Any]):
    """A dataset that keeps count of what is read, and stops at an index."""

    def __init__(self, dataset: Any, *, stop: int | None = None) -> None:
        self.dataset, self.items, self.stop, self.read = dataset, dataset.items, stop, []

    def __getitem__(self, index: int) -> Any:
        if index == self.stop:
            raise KeyboardInterrupt
        self.read.append(index)
        return self.dataset[index]


def test_shards_hold_what_describe_computes_and_what_the_rows_are_of(model, dataset, tmp_path: Path):
    model.train()
    record = extract(model, dataset, tmp_path, device="cpu", descriptors=("whole", "all"), shard_size=8, batch_size=3)
    assert model.training
    shards = open_shards(tmp_path)
    assert (shards.record, shards.starts, len(shards)) == (record, [0, 8, 16, 20], 3)
    assert dict(record.widths) == {"whole": model.widths["whole"], "all": sum(model.widths.values())}
    expected = describe(model, dataset, device="cpu")
    for name in ("whole", "all"):
        rows = torch.cat([shards.vectors(number, name) for number in range(3)])
        torch.testing.assert_close(rows, expected[name], rtol=1e-5, atol=1e-6)
    assert list(shards.all_items()) == dataset.items
    found = shards.items_at([19, 0, 8, 8])
    assert found == {row: dataset.items[row] for row in (0, 8, 19)}
    with safe_open(shard_path(tmp_path, 0), "pt") as file:  # names and columns are there for other readers
        metadata = file.metadata()
    assert json.loads(metadata["names"]) == [item.name for item in dataset.items[:8]]
    assert json.loads(metadata["columns"])["camera"] == [item.camera for item in dataset.items[:8]]


def test_an_extraction_that_was_stopped_continues_and_does_nothing_twice(model, dataset, tmp_path: Path):
    options: dict[str, Any] = {"device": "cpu", "shard_size": 6, "batch_size": 2}
    extract(model, dataset, tmp_path / "whole", **options)
    with pytest.raises(KeyboardInterrupt):
        extract(model, Counting(dataset, stop=9), tmp_path / "stopped", **options)
    there = sorted((tmp_path / "stopped" / "shards").iterdir())
    assert [path.name for path in there] == ["00000000.safetensors"]
    with pytest.raises(ValueError, match=r"lacks 3 of 4 shards, the first is 1: the extraction is not finished; run"):
        open_shards(tmp_path / "stopped")
    times = there[0].stat().st_mtime_ns
    rest = Counting(dataset)
    extract(model, rest, tmp_path / "stopped", **options)
    assert rest.read == list(range(6, 20))
    assert there[0].stat().st_mtime_ns == times
    whole, stopped = (open_shards(tmp_path / name) for name in ("whole", "stopped"))
    assert list(whole.all_items()) == list(stopped.all_items())
    for number in range(4):
        assert torch.equal(whole.vectors(number, "whole"), stopped.vectors(number, "whole"))
    again = Counting(dataset)
    extract(model, again, tmp_path / "stopped", **options)
    assert again.read == []


def test_one_extraction_at_a_time_uses_a_folder(model, dataset, tmp_path: Path):
    with locked(tmp_path), pytest.raises(BlockingIOError, match=r"is in use by another run \(process"):
        extract(model, dataset, tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_another_extraction_in_the_folder_is_refused_by_what_differs(model, dataset, tmp_path: Path):
    options: dict[str, Any] = {"device": "cpu", "notes": {"masks": "none"}}
    extract(model, dataset, tmp_path, **options)
    with pytest.raises(ValueError, match=r"another extraction \(shard_size 4096 -> 7\); choose another folder"):
        extract(model, dataset, tmp_path, shard_size=7, **options)
    with pytest.raises(ValueError, match=r"another extraction \(masks none -> ones\); choose"):
        extract(model, dataset, tmp_path, device="cpu", notes={"masks": "ones"})
    dataset.items.reverse()
    with pytest.raises(ValueError, match=r"\(listing \w{16} -> \w{16}\)"):
        extract(model, dataset, tmp_path, **options)
    dataset.items.reverse()
    with torch.no_grad():
        model.scale.mul_(2)
    with pytest.raises(ValueError, match=r"\(fingerprint \w{16} -> \w{16}\)"):
        extract(model, dataset, tmp_path, **options)


class Broken(nn.Module):
    """Features of two rows, of which one is not finite; or rows that are not contiguous."""

    widths = {"wide": 3}  # noqa: RUF012
    headline = "wide"

    def __init__(self, *, nan: bool) -> None:
        super().__init__()
        self.nan = nan

    def forward(self, batch: Any) -> Outputs:
        rows = torch.stack([batch.indices + 1.0, batch.indices + 2.0, -batch.indices.float()]).T
        assert not rows.is_contiguous()
        return Outputs({"wide": torch.where((batch.indices == 1)[:, None] & self.nan, torch.nan, rows)})

    def encode(self, captions: Any) -> Tensor | None:
        return None


def test_features_that_are_not_finite_are_refused_by_name(dataset, tmp_path: Path):
    second = dataset.items[1].name
    with pytest.raises(
        ValueError, match=rf"features 'wide' must be finite; 1 of 20 rows of a batch are not: {second}\."
    ):
        extract(Broken(nan=True), dataset, tmp_path, device="cpu")
    assert not list(tmp_path.glob("shards/*"))


def test_rows_that_are_not_contiguous_are_written_as_they_are(dataset, tmp_path: Path):
    """safetensors would write them in the order of the memory."""
    extract(Broken(nan=False), dataset, tmp_path / "a", device="cpu")
    indices = torch.arange(20.0)
    expected = nn.functional.normalize(torch.stack([indices + 1, indices + 2, -indices], dim=1), dim=1)
    torch.testing.assert_close(open_shards(tmp_path / "a").vectors(0, "wide"), expected)
    columns = torch.arange(6.0).reshape(3, 2).T
    write_shard(tmp_path / "b.safetensors", {"x": columns}, dataset.items[:2], {})
    with safe_open(tmp_path / "b.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("x"), columns)


def test_items_that_cannot_be_read_stop_or_are_left_out_and_named(model, dataset, tmp_path: Path):
    items = list(dataset.items)
    items[2] = replace(items[2], images=(tmp_path / "gone.png", items[2].images[1]))
    broken = type(dataset)(items, (16, 16), masks="none")
    with pytest.raises(ValueError, match=r"gone\.png cannot be read"):
        extract(model, broken, tmp_path / "stop", device="cpu")
    extract(model, broken, tmp_path / "skip", device="cpu", damaged="skip", shard_size=8, batch_size=1)
    shards = open_shards(tmp_path / "skip")
    assert shards.starts == [0, 7, 15, 19]
    assert [item.name for item in shards.all_items()] == [item.name for item in items if item is not items[2]]
    assert list(shards.left_out()) == [items[2].name]
    assert "gone.png cannot be read" in shards.left_out()[items[2].name]
    with pytest.raises(ValueError, match=r"damaged must be .*received 'ignore'"):
        extract(model, broken, tmp_path / "x", device="cpu", damaged="ignore")


def test_descriptors_must_be_features(model, dataset, tmp_path: Path):
    with pytest.raises(ValueError, match=r"descriptors must be features of the model, \['whole', 'text'\], .*'U'"):
        extract(model, dataset, tmp_path, device="cpu", descriptors=("U",))
    extract(model, dataset, tmp_path, device="cpu", descriptors=("whole+text",))
    with pytest.raises(ValueError, match=r"has the descriptors \['whole\+text'\]; received 'whole'"):
        open_shards(tmp_path).vectors(0, "whole")


def test_unlabelled_items_of_ones_own_are_enough(model, dataset, tmp_path: Path):
    items = unlabelled(["a", "b"], [item.images for item in dataset.items[:2]])
    extract(model, type(dataset)(items, (16, 16), masks="none"), tmp_path, device="cpu")
    assert [item.identity for item in open_shards(tmp_path).all_items()] == [None, None]


def test_items_survive_as_plain_values():
    item = Item(
        "a",
        "red",
        (Path("/x/a.png"), Panel(Path("/x/b.png"), 1, 3), None),
        (None, Path("/m.png"), None),
        camera=3,
        captions=("one", "", "three"),
        role="query",
        columns={"day": "mon"},
    )
    assert item_of(json.loads(json.dumps(plain_item(item)))) == item


def test_damaged_folders_say_what_is_wrong(model, dataset, tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"holds no extraction\.json"):
        open_shards(tmp_path)
    (tmp_path / "extraction.json").write_text("{}")
    with pytest.raises(ValueError, match=r"extraction\.json is not a record of an extraction in the format"):
        open_shards(tmp_path)
    (tmp_path / "extraction.json").unlink()
    extract(model, dataset, tmp_path, device="cpu")
    shard_path(tmp_path, 0).write_bytes(b"nothing")
    said = r"00000000\.safetensors cannot be read as a shard: .*; remove it and extract again"
    for read in (
        lambda shards: shards.items(0),
        lambda shards: shards.vectors(0, "whole"),
        lambda shards: shards.left_out(),
    ):
        with pytest.raises(ValueError, match=said):
            read(open_shards(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": "3"}, "Extraction.items must be int; received '3'"),
        ({"items": None}, "must have exactly its fields; received one that lacks items"),
        ({"more": 1}, "has the unknown more"),
        ({"shard_size": 0}, "shard_size must be at least 1; received 0"),
        ({"widths": {}}, "widths must be at least 1; received 0"),
        ({"widths": {"U": "wide"}}, "widths['U'] must be int; received 'wide'"),
        ({"notes": []}, "Extraction.notes must be"),
    ],
)
def test_a_record_that_lacks_an_entry_or_holds_another_type_is_named(changes, message: str, tmp_path: Path):
    whole = {"format": FORMAT, "fingerprint": "x", "widths": {"U": 2}, "items": 1, "shard_size": 1, "listing": "x"}
    content = {name: value for name, value in {**whole, "notes": {}, **changes}.items() if value is not None}
    (tmp_path / "extraction.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=rf"extraction\.json is not a record of an extraction: .*{re.escape(message)}"):
        open_shards(tmp_path)


def read_all(shards: Shards) -> tuple[list[Item], torch.Tensor]:
    return list(shards.all_items()), shards.vectors(0, "U")


def rows(count: int, **options: Any) -> dict[str, torch.Tensor]:
    return {"U": torch.zeros(count, 2, **options)}


@pytest.mark.parametrize(
    ("tensors", "changes", "message"),
    [
        (rows(1), {}, "1 descriptors must be of as many items; there are 2"),
        (rows(2, dtype=torch.int64), {}, "U must be rows of 2 float32; it is (2, 2), torch.int64"),
        ({"U": torch.zeros(2, 3)}, {}, "U must be rows of 2 float32; it is (2, 3)"),
        ({"V": torch.zeros(2, 2)}, {}, "SafetensorError"),
        (rows(2), {"names": ["a", 3]}, "item must hold texts and whole numbers"),
        (rows(2), {"columns": {}}, "KeyError"),
        (rows(2), {"names": None}, "KeyError"),
    ],
)
def test_a_shard_that_does_not_fit_its_record_is_named(tensors, changes, message: str, tmp_path: Path):
    record = {"format": FORMAT, "fingerprint": "x", "widths": {"U": 2}, "items": 2, "shard_size": 2, "listing": "x"}
    (tmp_path / "extraction.json").write_text(json.dumps({**record, "notes": {}}))
    path = shard_path(tmp_path, 0)
    write_shard(path, rows(2), unlabelled(["a", "b"], [[tmp_path / "a.png"]] * 2), {})
    assert [item.name for item in open_shards(tmp_path).all_items()] == ["a", "b"]
    with safe_open(path, "pt") as shard:
        texts = {name: json.loads(text) for name, text in shard.metadata().items()} | changes
    kept = {name: json.dumps(value) for name, value in texts.items() if value is not None}
    save_file(tensors, path, kept)
    shards = open_shards(tmp_path)
    with pytest.raises(ValueError, match=rf"00000000\.safetensors cannot be read as a shard: .*{re.escape(message)}"):
        read_all(shards)


def test_the_fingerprint_sees_every_weight(model):
    before = fingerprint(model)
    assert fingerprint(model) == before
    buffer = next(model.buffers())
    buffer.add_(1)
    assert fingerprint(model) != before
