"""Contract of every method of the examples: it trains, resumes, evaluates and accepts missing modalities."""

import copy
import shutil
import warnings
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import cli
from examples.compare import Offer
from examples.methods import METHODS, load_method
from examples.run import default_run, values_of
from examples.train import Options, build_model, load_splits, train
from method_batches import MODALITIES, one_row, random_batch, small_model, without_zeros
from processes import in_processes
from sets import assert_same_weights, tiny, weights, write_set
from stmi_layers.training import (
    Data,
    Objective,
    ReIDModel,
    Schedule,
    facts_of,
    fit,
    from_dict,
    loop,
    protocol_for,
    to_dict,
)
from stmi_layers.training.checkpoint import save_checkpoint
from stmi_layers.training.optimisation import check_groups

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"
every_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three modalities, the second and third of which are missing here and there; one identity has no third at all."""
    root = write_set(tmp_path_factory.mktemp("set"), MODALITIES)
    for modality, name in (("NI", "000000_cam1_0_00"), ("NI", "000003_cam2_0_01"), ("NI", "000007_cam1_0_00")):
        next(root.glob(f"*/{modality}/{name}.png")).unlink()
    for image in (*root.glob("train/TI/000001_*"), *root.glob("test/TI/*_cam2_0_01.png")):
        image.unlink()
    return root


def incomplete(folder: Path, method: str, modalities: int, **changes: Any):
    settings = {"epochs": 2, "evaluate_every": 5, "missing_modality": "absent", "modality_dropout": 0.2, "seed": 3}
    return tiny(folder, method, modalities=MODALITIES[:modalities], **{**settings, **changes})


@pytest.mark.parametrize("modalities", [1, 2, 3])
@every_method
def test_it_trains_and_resumes_to_the_same_weights(
    method: str, modalities: int, folder: Path, tmp_path: Path, monkeypatch
):
    monkeypatch.setattr("examples.train.report", lambda *_: None)  # pictures, which take longer than the training
    run = incomplete(folder, method, modalities)
    metrics = train(run, tmp_path / "whole")
    assert all(0 < found.mAP <= 1 for found in metrics.values())
    save = save_checkpoint

    def save_and_stop(path: Path, checkpoint: Any) -> None:
        save(path, checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "stopped")
    monkeypatch.setattr(loop, "save_checkpoint", save)
    resumed = train(run, tmp_path / "stopped", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "stopped")
    assert resumed == metrics


@pytest.mark.parametrize("modalities", [2, 3])
@every_method
def test_every_parameter_is_in_one_group_and_learns(method: str, modalities: int):
    model = without_zeros(small_model(method, modalities))
    batch = random_batch(6, modalities, model=model)
    assert isinstance(model, ReIDModel)
    check_groups(model, model.parameter_groups())
    outputs = model(batch)
    assert {name: value.shape for name, value in outputs.features.items()} == {
        name: (6, width) for name, width in model.widths.items()
    }
    objective = Objective(model.widths, 3, Schedule())
    objective.check(outputs, 6)
    torch.stack(list(objective(outputs, batch.labels).values())).sum().backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("absent", [0, 2])
@every_method
def test_whatever_stands_in_an_absent_slot_changes_nothing(method: str, absent: int, training: bool):
    model = small_model(method, 3).train(training)
    present = torch.ones(4, 3, dtype=torch.bool)
    present[1:3, absent] = False
    batch = random_batch(4, 3, present=present, model=model)
    results = []
    for fill in (0.0, 3.0, torch.nan):
        images = batch.images.masked_fill(~present[..., None, None, None], fill)
        masks = torch.where(present[..., None, None], batch.masks, fill == 3.0)
        own = copy.deepcopy(model)
        torch.manual_seed(0)  # of dropout
        outputs = own(batch._replace(images=images, masks=masks))
        parts = {**outputs.features, **outputs.terms}
        torch.stack([part.square().sum() for part in parts.values()]).sum().backward()
        results.append((parts, {name: parameter.grad for name, parameter in own.named_parameters()}))
    for parts, gradients in results[1:]:
        for name, value in results[0][0].items():
            assert value.isfinite().all(), name
            assert torch.equal(value, parts[name]), name
        for name, value in results[0][1].items():
            assert value is None or torch.equal(value, gradients[name]), name


@every_method
def test_a_batch_in_which_nobody_has_a_modality_trains(method: str):
    present = torch.tensor([[True, False, True]]).expand(4, 3)
    model = small_model(method, 3).train()
    outputs = model(random_batch(4, 3, present=present, model=model))
    parts = {**outputs.features, **outputs.terms}
    torch.stack([part.sum() for part in parts.values()]).sum().backward()
    for name, value in [*model.named_buffers(), *model.named_parameters()]:
        assert value.isfinite().all(), name
        assert value.grad is None or value.grad.isfinite().all(), name


@every_method
def test_samples_do_not_see_each_other_in_evaluation(method: str):
    model = small_model(method, 3).eval()
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, True], [False, False, True]])
    batch = random_batch(4, 3, present=present, model=model)
    outputs = model(batch)
    assert not outputs.terms
    for index in range(4):
        alone = model(one_row(batch, index)).features
        for name, value in outputs.features.items():
            torch.testing.assert_close(alone[name][0], value[index], rtol=1e-4, atol=1e-5, msg=name)
    whole = model(one_row(batch._replace(present=None), 0)).features
    for name, value in outputs.features.items():
        torch.testing.assert_close(whole[name][0], value[0], rtol=1e-4, atol=1e-5, msg=name)


@every_method
def test_masks_steer_the_tower(method: str):
    model = small_model(method, 2).eval()
    batch = random_batch(3, 2, model=model)
    with_masks, without = model(batch).features, model(batch._replace(masks=None)).features
    for name in with_masks:
        assert name == "T" or not torch.allclose(with_masks[name], without[name], atol=1e-4), name


RECIPES = [(method, name) for method in METHODS for name in load_method(method).recipes]


def parsed(*line: str) -> Any:
    return cli.parse_run(line, Options, "python -m examples.train", "")[0]


@pytest.mark.parametrize(("method", "name"), RECIPES)
def test_the_values_of_a_recipe_fit_the_settings_and_the_command_line(method: str, name: str):
    recipe = load_method(method).default | load_method(method).recipes[name]
    run = default_run(load_method(method), Data(Path("some")), name)
    for setting, entry in recipe.items():
        whole, _, part = setting.partition(".")
        (record,) = [record for record in run.records().values() if whole in {one.name for one in fields(record)}]
        value = getattr(record, whole)
        assert (value[part] if part else value) == entry.value, setting
        assert entry.why, setting
    for record in run.records().values():
        assert from_dict(type(record), to_dict(record)) == record
    assert parsed(method, "--recipe", name, "--data", "some", "--out", "other") == run
    assert run.changed(values_of(recipe)) == run


@every_method
def test_help_shows_every_setting_of_the_method(method: str, capsys):
    with pytest.raises(SystemExit) as ended:
        parsed(method, "--help")
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    for one in fields(load_method(method).settings):
        assert f"--{one.name.replace('_', '-')}" in shown, one.name


@every_method
def test_every_variant_can_be_built_and_every_row_names_one(method: str):
    offer = Offer(method)
    for name, values in offer.variants.items():
        values = {key: value for key, value in values.items() if key not in ("backbone", "captions")}
        model = small_model(method, 2, **{"depth": 2, **values})
        outputs, widths = model.eval()(random_batch(2, 2, model=model)), model.widths
        assert list(outputs.features) == list(widths), name
        assert {*model.headline.split("+")} <= {*widths} or (model.headline == "all" and len(widths) > 1), name
    for preset in offer.presets.values():
        assert {row.variant for row in preset.rows} <= offer.variants.keys(), preset.title
    assert set(offer.usual) <= offer.variants.keys()


def train_in_double(folder: str, out: str) -> None:
    """In float64, because Adam makes whole steps of the rounding in gradients that are 0."""
    for method in METHODS:
        # Two steps; how epochs follow each other is the same for all methods.
        changes: dict[str, Any] = {"epochs": 1, "warmup_epochs": 0.5, "identities_per_batch": 4}
        changes |= {"clip_norm": None, "term_weights": {}}
        if hasattr(load_method(method).settings, "dropout"):
            changes["dropout"] = 0.0  # each process draws its own
        run = incomplete(Path(folder), method, 3, **changes)
        dataset, test = load_splits(run)
        facts = facts_of(dataset, run.data.modalities)
        model = build_model(run, facts)[0].double()
        forward = model.forward
        model.forward = lambda batch, forward=forward: forward(batch._replace(images=batch.images.double()))
        protocol, place = protocol_for(test.items, run.data), Path(out) / method
        options = {"schedule": run.schedule, "machine": run.machine, "protocol": protocol, "keep": run.keep(facts)}
        fit(model, dataset, test, out=place, **options)


@pytest.mark.slow
def test_two_processes_end_with_the_weights_of_one(folder: Path, tmp_path: Path):
    in_processes(train_in_double, str(folder), str(tmp_path / "two"))
    train_in_double(str(folder), str(tmp_path / "one"))
    for method in METHODS:
        first, second = weights(tmp_path / "one" / method), weights(tmp_path / "two" / method)
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-7, atol=1e-9, msg=f"{method}: {name}")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first identities of the real sets: to read all of them for every method would be most of its time."""
    root = tmp_path_factory.mktemp("real")
    for split in (*REAL.glob("naip_*/train*"), *REAL.glob("naip_*/test")):
        first = sorted({image.name.partition("_")[0] for image in split.rglob("*_cam*")})[:6]
        for image in (one for one in split.rglob("*_cam*") if one.name.partition("_")[0] in first):
            (root / image.relative_to(REAL)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(image, root / image.relative_to(REAL))
    return root


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the real images are not beside the project")
@pytest.mark.parametrize("name", ["naip_parcels", "naip_places"])
@pytest.mark.parametrize("method", [method for method in METHODS if method != "stmi"])  # `test_train.py` has STMI
def test_real_images_train_and_evaluate(method: str, name: str, real: Path, tmp_path: Path):
    changes = {"query_cameras": (3,), "epochs": 1, "image_size": (32, 32), "captions": "off"}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*captions have more than 32 words")
        metrics = train(tiny(real / name, method, **changes), tmp_path)
    assert all(0 < found.mAP <= 1 and found.num_skipped == 0 for found in metrics.values())
    assert {found.num_queries for found in metrics.values()} == {6}
