"""Contract of the trainer: a model that keeps it trains unchanged, any other is refused by name before training."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from sets import write_set
from stmi_layers.training import (
    Batch,
    Outputs,
    ReIDModel,
    evaluate,
    facts_of,
    fit,
    from_dict,
    load_split,
    load_weights,
    protocol_for,
    read_checkpoint,
)
from stmi_layers.training.contract import Facts
from toy_method.model import Toy, build
from toy_method.settings import Settings
from toy_runs import DATA, MACHINE, SCHEDULE, train_toy

ONE = replace(SCHEDULE, epochs=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_set(tmp_path_factory.mktemp("set"))
    for modality in ("TI",):  # a third modality, for a third tower
        for split in ("train", "test"):
            (root / split / modality).mkdir()
            for path in (root / split / "NI").iterdir():
                (root / split / modality / path.name).write_bytes(path.read_bytes())
    return root


def test_the_toy_methods_keep_the_contract():
    facts = Facts(("RGB", "NI"), (16, 16), 5)
    assert isinstance(build(Settings(), facts), ReIDModel)
    assert not isinstance(nn.Linear(2, 2), ReIDModel)


@pytest.mark.parametrize("settings", [Settings(), Settings(agreement=True, reads_captions=True)])
def test_a_method_of_two_files_trains_evaluates_and_is_restored_from_its_checkpoint(settings, folder, tmp_path: Path):
    """Three towers, and a term over the batch: nothing in the library knows of either."""
    data = replace(DATA, modalities=("RGB", "NI", "TI"))
    schedule = replace(SCHEDULE, term_weights={"agreement": 0.1} if settings.agreement else {})
    metrics, _ = train_toy(folder, tmp_path, data=data, settings=settings, schedule=schedule)
    kept = read_checkpoint(tmp_path / "checkpoint.pt")
    facts = Facts(**{name: tuple(v) if isinstance(v, list) else v for name, v in kept.records["facts"].items()})
    assert facts.modalities == ("RGB", "NI", "TI")
    model = build(from_dict(Settings, kept.records["method"]), facts)
    load_weights(model, kept.model, "model")
    test = load_split(from_dict(type(data), kept.records["data"]), "test")
    again = evaluate(model, test, protocol=protocol_for(test.items), machine=MACHINE)
    assert {name: value.mAP for name, value in again.items()} == {name: value.mAP for name, value in metrics.items()}


def test_the_first_fields_of_a_batch_are_what_the_contract_says(folder: Path, tmp_path: Path, monkeypatch):
    seen: list[Batch] = []
    forward = Toy.forward

    def watched(self: Toy, batch: Batch) -> Outputs:
        seen.append(batch)
        return forward(self, batch)

    monkeypatch.setattr(Toy, "forward", watched)
    train_toy(folder, tmp_path, schedule=ONE, settings=Settings(reads_captions=True))
    batch = seen[0]
    assert batch.images.shape == (8, 2, 3, 16, 16)
    assert batch.images.min() >= 0
    assert batch.images.max() <= 1
    assert batch.present is None
    assert batch.masks is None
    assert batch.texts.shape == (8, 8)
    assert batch.has_text.all()
    assert sorted(set(batch.cameras.tolist())) == [1, 2]


def test_a_headline_may_join_features(folder: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(Toy, "headline", "text+whole", raising=False)
    monkeypatch.setattr(Toy, "__setattr__", keep_headline)
    metrics, _ = train_toy(folder, tmp_path, schedule=ONE, settings=Settings(reads_captions=True))
    assert list(metrics) == ["whole", "text", "all", "text+whole"]
    assert json.loads((tmp_path / "metrics.json").read_text())["headline"] == "text+whole"


def keep_headline(model: Toy, name: str, value: object) -> None:
    if name != "headline":
        nn.Module.__setattr__(model, name, value)


def refused(change: Callable[[Toy], object], folder: Path, out: Path, **options) -> None:
    data = replace(DATA, root=folder)
    train, test = load_split(data, "train"), load_split(data, "test")
    model = build(Settings(), facts_of(train, data.modalities))
    change(model)
    fit(
        model,
        train,
        test,
        out=out,
        machine=MACHINE,
        **{"schedule": ONE, "protocol": protocol_for(test.items), **options},
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("headline", "U", r"headline must be one of the features, \['whole'\], several joined .*; received 'U'"),
        ("headline", "all", r"headline must be one of the features, .* or 'all' of several features; received 'all'"),
        ("widths", {}, "headline must be one of the features"),
        ("parameter_groups", lambda: {"new": []}, r"parameter_groups\(\) must hold every trainable parameter"),
        ("encode", lambda captions: torch.zeros(3, 2), "encode must return a row per sample, 20; received 3"),
        ("forward", lambda batch: Outputs({"whole": torch.zeros(8, 3)}), r"widths, \{'whole': \(8, 8\)\}; received"),
        ("forward", lambda batch: Outputs({}), "features must have the names and shapes of the model's widths"),
    ],
)
def test_models_that_break_the_contract_are_refused(name: str, value, message: str, folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        refused(lambda model: setattr(model, name, value), folder, tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_module_that_lacks_members_is_refused(folder: Path, tmp_path: Path):
    train = load_split(replace(DATA, root=folder), "train")
    message = r"contract of training; Linear lacks \['widths', 'headline', 'encode', 'parameter_groups', 'watch'\]"
    with pytest.raises(TypeError, match=message):
        fit(nn.Linear(2, 2), train, schedule=ONE, machine=MACHINE, out=tmp_path)


def test_weights_by_unknown_names_are_refused_before_the_first_step(folder: Path, tmp_path: Path):
    for name in ("feature_weights", "term_weights", "rates"):
        with pytest.raises(ValueError, match=rf"{name} must be by names among .*; received \['U'\]"):
            refused(lambda model: None, folder, tmp_path, schedule=replace(ONE, **{name: {"U": 2.0}}))


def test_a_test_split_that_cannot_be_scored_is_refused_before_the_training(folder: Path, tmp_path: Path):
    data = replace(DATA, root=folder)
    protocol = replace(protocol_for(load_split(data, "test").items), query_cameras=(7,))
    with pytest.raises(ValueError, match="query_cameras must be cameras of the items"):
        refused(lambda model: None, folder, tmp_path, protocol=protocol)
