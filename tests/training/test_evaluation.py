"""Evaluation of any model and dataset: descriptors, scores, and the report as text, metrics.json and saved features."""

import builtins
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from sets import write_set
from stmi_layers import ReIDMetrics
from stmi_layers.training import (
    Batch,
    Machine,
    Outputs,
    Protocol,
    concatenate,
    describe,
    evaluate,
    facts_of,
    load_split,
    score,
    table,
    write_features,
    write_metrics,
)
from stmi_layers.training.report import as_numbers
from toy_method.model import Toy, build
from toy_method.settings import Settings
from toy_runs import DATA

SETTINGS = Settings(reads_captions=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def test(folder: Path):
    return load_split(replace(DATA, root=folder), "test")


def model_for(dataset) -> Toy:
    torch.manual_seed(0)
    return build(SETTINGS, facts_of(dataset, DATA.modalities))


def test_descriptors_are_the_features_with_norm_1_in_the_order_of_the_items(test):
    model = model_for(test).train()
    found = describe(model, test, device="cpu", batch_size=3)
    assert model.training
    assert list(found) == ["whole", "text", "all"]
    assert not found["whole"].requires_grad
    model.eval()
    sample = test[7]
    alone = model(
        Batch(
            images=sample.images[None],
            masks=None,
            present=None,
            labels=torch.zeros(1, dtype=torch.long),
            cameras=torch.zeros(1, dtype=torch.long),
            views=torch.zeros(1, dtype=torch.long),
            scenes=torch.zeros(1, dtype=torch.long),
            texts=test.texts[7:8],
            has_text=torch.ones(1, dtype=torch.bool),
            indices=torch.tensor([7]),
        )
    ).features
    for name, feature in alone.items():
        torch.testing.assert_close(found[name][7], feature[0].detach() / feature[0].detach().norm())
    both = torch.cat([found["whole"], found["text"]], dim=1) / 2**0.5
    torch.testing.assert_close(found["all"], both)


def test_a_part_of_a_dataset_and_any_batches_give_the_same_rows(test):
    model = model_for(test)
    whole = describe(model, test, device="cpu")
    part = describe(model, Subset(test, [11, 2, 5]), device="cpu", batch_size=2, workers=1)
    for name, rows in whole.items():
        torch.testing.assert_close(part[name], rows[[11, 2, 5]])


class Unlabelled(Dataset[dict[str, Tensor]]):
    """Images of one's own: samples are what one likes, and `collate` makes a batch of them."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"images": torch.full((2, 3, 16, 16), index / 5), "index": torch.tensor(index)}


def collate_unlabelled(samples: list[dict[str, Tensor]]) -> Batch:
    indices = torch.stack([sample["index"] for sample in samples])
    unknown = torch.full_like(indices, -1)
    return Batch(
        images=torch.stack([sample["images"] for sample in samples]),
        masks=None,
        present=None,
        labels=unknown,
        cameras=unknown,
        views=unknown,
        scenes=unknown,
        texts=None,
        has_text=torch.zeros(len(samples), dtype=torch.bool),
        indices=indices,
    )


def test_datasets_of_ones_own_need_no_labels(test):
    model = build(Settings(), facts_of(test, DATA.modalities))
    found = describe(model, Unlabelled(), device="cpu", collate=collate_unlabelled)
    assert list(found) == ["whole"]
    assert found["whole"].shape == (5, 8)


def test_features_that_are_not_finite_are_refused_by_name(test, monkeypatch: pytest.MonkeyPatch):
    forward = Toy.forward

    def broken(self: Toy, batch: Batch) -> Outputs:
        outputs = forward(self, batch)
        text = outputs.features["text"].masked_fill((batch.indices == 6)[:, None], torch.inf)
        return outputs._replace(features={**outputs.features, "text": text})

    monkeypatch.setattr(Toy, "forward", broken)
    message = rf"features 'text' must be finite; 1 of 20 rows are not: {test.items[6].name}\."
    with pytest.raises(ValueError, match=message):
        describe(model_for(test), test, device="cpu")
    with pytest.raises(ValueError, match=rf"1 of 2 rows are not: {test.items[6].name}\."):
        describe(model_for(test), Subset(test, [3, 6]), device="cpu")


def test_it_reads_every_image_once_and_keeps_none(test, monkeypatch: pytest.MonkeyPatch):
    read, getitem = [], type(test).__getitem__

    def watched(self, index: int):
        read.append(index)
        return getitem(self, index)

    monkeypatch.setattr(type(test), "__getitem__", watched)
    before = {name: value for name, value in vars(test).items() if name != "texts"}
    describe(model_for(test), test, device="cpu", batch_size=4)
    assert read == list(range(20))
    assert {name: value for name, value in vars(test).items() if name != "texts"} == before


def test_descriptors_are_joined_by_any_of_their_names():
    found = {"a": torch.tensor([[1.0, 0.0]]), "b": torch.tensor([[0.0, 1.0]]), "c": torch.tensor([[1.0]])}
    torch.testing.assert_close(concatenate(found, ["c", "b"]), torch.tensor([[1.0, 0.0, 1.0]]) / 2**0.5)
    with pytest.raises(ValueError, match=r"names must be among the descriptors, \['a', 'b', 'c'\]; received \['U'\]"):
        concatenate(found, ["a", "U"])


def test_scores_of_perfect_and_of_useless_descriptors(test):
    labels = torch.tensor(test.labels, dtype=torch.float32)
    found = score({"perfect": labels[:, None], "useless": torch.zeros(20, 1)}, test.items, Protocol())
    assert found["perfect"].mAP == 1
    assert found["useless"].mAP < 0.5
    again = score({"perfect": labels[:, None]}, test.items, Protocol(), rerank=True)
    assert again["perfect"].mAP == 1


def test_evaluate_is_describe_and_score(test):
    machine = Machine(device="cpu", quiet=True)
    found = evaluate(model_for(test), test, protocol=Protocol(), machine=machine)
    expected = score(describe(model_for(test), test, device="cpu"), test.items, Protocol())
    assert {name: value.mAP for name, value in found.items()} == {name: value.mAP for name, value in expected.items()}


def metrics(skipped: int = 0) -> ReIDMetrics:
    return ReIDMetrics(0.5, {1: 0.25, 5: 0.75}, 0.125, torch.tensor([0.5]), 8, skipped)


def test_the_table_is_in_percent_and_counts_skipped_queries():
    text = table({"a_rather_long_name": metrics(), "U": metrics()})
    lines = text.splitlines()
    assert lines[0].split() == ["mAP", "R1", "R5", "mINP"]
    assert lines[1].split() == ["a_rather_long_name", "50.0", "25.0", "75.0", "12.5"]
    assert len({len(line) for line in lines}) == 1
    assert "2 of 8 queries are skipped" in table({"U": metrics(skipped=2)})


def test_metrics_are_written_whole_with_a_headline(tmp_path: Path):
    path = write_metrics(
        tmp_path / "new", {"U": metrics(1)}, headline="U", protocol="all query all", extra={"epochs": 3}
    )
    assert json.loads(path.read_text()) == {
        "headline": "U",
        "protocol": "all query all",
        "queries": 8,
        "skipped_queries": 1,
        "split": "test",
        "descriptors": {"U": as_numbers(metrics())},
        "epochs": 3,
    }
    with pytest.raises(ValueError, match=r"headline must be one of the descriptors, \['U'\]; received 'G'"):
        write_metrics(tmp_path, {"U": metrics()}, headline="G", protocol="")
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["metrics.json"]


@pytest.mark.parametrize("kind", ["safetensors", "npz"])
def test_features_are_written_as_data(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    if kind == "npz":
        monkeypatch.setattr("stmi_layers.training.report.find_spec", lambda name: None)
    else:
        pytest.importorskip("safetensors")
    rows = torch.randn(3, 4).T  # not contiguous
    path, names = write_features(tmp_path, {"U": rows, "all": torch.ones(4, 2)}, ["a", "b", "c", "d"])
    assert path.suffix == f".{kind}"
    if kind == "npz":
        read = {name: torch.from_numpy(value) for name, value in np.load(path).items()}
    else:
        from safetensors.torch import load_file

        read = load_file(path)
    assert torch.equal(read["U"], rows)
    assert read.keys() == {"U", "all"}
    assert json.loads(names.read_text()) == ["a", "b", "c", "d"]


def test_features_without_a_name_each_are_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="descriptors must have a row per name, 2; 'U' has 3"):
        write_features(tmp_path, {"U": torch.ones(3, 1)}, ["a", "b"])
    assert list(tmp_path.iterdir()) == []


def test_results_need_no_picture_library(test, monkeypatch: pytest.MonkeyPatch):
    imported, of = [], builtins.__import__

    def watched(name: str, *arguments, **options):
        imported.append(name)
        return of(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", watched)
    evaluate(model_for(test), test, protocol=Protocol(), machine=Machine(device="cpu", quiet=True))
    assert not [name for name in imported if name.startswith(("matplotlib", "tyro", "tensorboard"))]
