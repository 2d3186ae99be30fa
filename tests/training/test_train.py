"""The trainer end to end on a tiny folder set: results, resumption, reproducibility, and what it refuses."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from examples import compare
from examples.stmi import evaluate
from examples.stmi.run import start
from examples.stmi.settings import Settings
from examples.stmi.train import rate, train, train_dataset, train_epoch
from sets import assert_same_weights, tiny, weights, write_set
from stmi_layers.training.checkpoint import read_checkpoint, save_checkpoint
from stmi_layers.training.dataset import collate

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


def test_a_run_writes_its_results(folder, tmp_path):
    metrics = train(tiny(folder, tmp_path), quiet=True)
    assert set(metrics) == {"G", "U", "T", "all"}
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["headline"] == "U"
    assert written["descriptors"]["U"]["mAP"] == metrics["U"].mAP
    assert written["epochs"] == 3
    assert written["best_epoch_by_test"]["epoch"] in (2, 3)
    assert Settings.from_dict(json.loads((tmp_path / "settings.json").read_text())) == tiny(folder, tmp_path)
    assert list((tmp_path / "tensorboard").iterdir())
    for picture in ("curves.png", "retrieval.png"):
        assert np.asarray(Image.open(tmp_path / picture)).std() > 10


def test_training_lowers_the_loss(folder, tmp_path):
    train(tiny(folder, tmp_path, epochs=15, evaluate_every=15), quiet=True)
    history = read_checkpoint(tmp_path / "checkpoint.pt")["history"]
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]
    assert history[-1]["alpha"] != history[0]["alpha"]


def test_a_seed_gives_the_same_metrics_and_another_other_weights(folder, tmp_path):
    first = train(tiny(folder, tmp_path / "a"), quiet=True)
    second = train(tiny(folder, tmp_path / "b", workers=2), quiet=True)
    assert first == second
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    train(tiny(folder, tmp_path / "c", seed=1), quiet=True)
    assert any(not torch.equal(value, weights(tmp_path / "c")[name]) for name, value in weights(tmp_path / "a").items())


def test_a_killed_run_resumes_to_the_same_weights(folder, tmp_path):
    settings = {"epochs": 6, "perturbation": 0.2, "erasing": 0.5}
    train(tiny(folder, tmp_path / "whole", **settings), quiet=True)
    code = (
        "import json, sys; from examples.stmi.settings import Settings; from examples.stmi.train import train; "
        "train(Settings.from_dict(json.loads(sys.argv[1])), quiet=True)"
    )
    described = json.dumps(tiny(folder, tmp_path / "killed", **settings).to_dict())
    process = subprocess.Popen(
        [sys.executable, "-c", code, described], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read_checkpoint(tmp_path / "killed" / "checkpoint.pt")["epoch"] < 6
    resumed = train(tiny(folder, tmp_path / "killed", **settings), resume=True, quiet=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    assert resumed == train(tiny(folder, tmp_path / "whole", **settings), resume=True, quiet=True)


def test_a_finished_run_is_not_overwritten_and_other_settings_do_not_resume(folder, tmp_path):
    train(tiny(folder, tmp_path, epochs=1), quiet=True)
    with pytest.raises(FileExistsError, match="holds a run already: continue it with --resume"):
        train(tiny(folder, tmp_path, epochs=1), quiet=True)
    with pytest.raises(ValueError, match=r"made with other settings(.|\n)*dim: 16 -> 32\n +epochs: 1 -> 2"):
        train(tiny(folder, tmp_path, epochs=2, dim=32), resume=True, quiet=True)


def test_resuming_nothing_starts_a_run_with_a_warning(folder, tmp_path):
    with pytest.warns(UserWarning, match=r"checkpoint\.pt does not exist: nothing to resume, .* starts at epoch 1"):
        train(tiny(folder, tmp_path, epochs=1), resume=True, quiet=True)
    assert read_checkpoint(tmp_path / "checkpoint.pt")["epoch"] == 1
    train(tiny(folder, tmp_path, epochs=1), resume=True, quiet=True)


def test_a_loss_that_is_not_finite_stops_the_run_by_name(folder, tmp_path):
    train(tiny(folder, tmp_path, epochs=1), quiet=True)
    content = read_checkpoint(tmp_path / "checkpoint.pt")
    content.pop("format")
    content["model"]["backbone.class_token"].fill_(float("nan"))
    content["settings"]["epochs"] = 2
    save_checkpoint(tmp_path / "checkpoint.pt", content)
    with pytest.raises(FloatingPointError, match=r"the loss is nan in epoch 2, step 1 .*checkpoint of epoch 1 is kept"):
        train(tiny(folder, tmp_path, epochs=2), resume=True, quiet=True)
    content["epoch"] = 0
    save_checkpoint(tmp_path / "checkpoint.pt", content)
    with pytest.raises(FloatingPointError, match=r"in epoch 1, step 1 \(items 0000.* and 5 more\); nothing is kept"):
        train(tiny(folder, tmp_path, epochs=2), resume=True, quiet=True)


def test_evaluation_of_a_checkpoint_repeats_the_result(folder, tmp_path, capsys):
    expected = train(tiny(folder, tmp_path), quiet=True)
    metrics = evaluate.main(evaluate.Arguments(tmp_path / "checkpoint.pt", device="cpu"))
    assert metrics == expected
    assert (tmp_path / "evaluation" / "retrieval.png").exists()
    assert "same identity and camera dropped" in capsys.readouterr().out
    other = evaluate.main(evaluate.Arguments(tmp_path / "checkpoint.pt", query_cameras=(2,), device="cpu"))
    assert other["U"].num_queries == 10
    with pytest.raises(ValueError, match=r"query_cameras must be cameras of the items, \[1, 2\]"):
        evaluate.main(evaluate.Arguments(tmp_path / "checkpoint.pt", query_cameras=(7,), device="cpu"))


def test_a_descriptor_the_model_lacks_is_refused_before_the_training(folder, tmp_path):
    with pytest.raises(ValueError, match=r"descriptor must be one the model has, .*received 'U'"):
        train(tiny(folder, tmp_path, reallocation=False, descriptor="U"), quiet=True)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_a_test_split_that_cannot_be_scored_is_refused_before_the_training(folder, tmp_path):
    with pytest.raises(ValueError, match=r"query_cameras must be cameras of the items, \[1, 2\]; received \[3\]"):
        train(tiny(folder, tmp_path / "out", query_cameras=(3,)), quiet=True)
    one_camera = tmp_path / "set"
    shutil.copytree(folder, one_camera, ignore=shutil.ignore_patterns("text"))
    for image in (one_camera / "test").glob("*/*_cam2_*"):
        image.unlink()
    with pytest.raises(ValueError, match="no query has a positive in the gallery: received 10 queries"):
        train(tiny(one_camera, tmp_path / "out", captions="off"), quiet=True)
    assert not (tmp_path / "out").exists()


def test_queries_without_a_match_are_counted_where_the_scores_are_shown(folder, tmp_path, capsys):
    incomplete = tmp_path / "set"
    shutil.copytree(folder, incomplete, ignore=shutil.ignore_patterns("text"))
    for image in (incomplete / "test").glob("*/000007_cam2_*"):
        image.unlink()
    train(tiny(incomplete, tmp_path / "out", captions="off", epochs=1))
    assert "2 of 18 queries are skipped: the gallery shows their identity from no" in capsys.readouterr().out


def test_more_images_per_identity_than_there_are_give_a_warning(folder, tmp_path):
    with pytest.warns(UserWarning, match=r"5 of 5 identities .* images_per_identity=6: 0, 1, .*theirs are repeated"):
        train(tiny(folder, tmp_path, epochs=1, images_per_identity=6), quiet=True)


@pytest.mark.parametrize("name", ["epochs", "evaluate_every"])
def test_settings_that_train_nothing_are_refused(folder, tmp_path, name):
    with pytest.raises(ValueError, match=f"epochs and evaluate_every must be at least 1; received .*{name}=0"):
        tiny(folder, tmp_path, **{name: 0})


def test_a_checkpoint_of_another_version_or_other_captions_is_refused(folder, tmp_path):
    settings = tiny(folder, tmp_path)
    with pytest.raises(ValueError, match=r"another version of this trainer: it sets \['colour'\]; train anew"):
        Settings.from_dict({**settings.to_dict(), "colour": 1})
    run = start(settings, train_dataset(settings))
    state = run.state()
    state["words"][0] = "other"
    with pytest.raises(ValueError, match="made with captions of other words; restore those, or train anew"):
        run.restore(state)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ValueError, match=r"device must be cpu or auto .* received 'cuda:1'"):
        evaluate.choose_device("cuda:1")


def test_a_missing_modality_is_an_error_or_absent(folder, tmp_path):
    incomplete = tmp_path / "set"
    shutil.copytree(folder, incomplete)
    (incomplete / "train" / "NI" / "000000_cam1_0_00.png").unlink()
    (incomplete / "test" / "RGB" / "000007_cam2_0_01.png").unlink()
    with pytest.raises((ValueError, FileNotFoundError), match=r"000000_cam1_0_00"):
        train(tiny(incomplete, tmp_path / "strict"), quiet=True)
    metrics = train(tiny(incomplete, tmp_path / "absent", missing_modality="absent"), quiet=True)
    assert 0 < metrics["U"].mAP <= 1


def test_compare_writes_a_table_and_repeats_nothing(folder, tmp_path):
    values = {**vars(tiny(folder, tmp_path)), "captions": "off", "epochs": 1}
    arguments = compare.Arguments(**values, variants=("baseline", "full", "full@RGB"), seeds=(0, 1))
    text = compare.main(arguments)
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    assert [(name.strip(), by.strip()) for name, by in rows] == [
        ("variant", "by"),
        ("baseline", "G"),
        ("full", "U"),
        ("full@RGB", "U"),
    ]
    assert "±" in text
    made = (tmp_path / "runs" / "full" / "seed-1" / "checkpoint.pt").stat().st_mtime_ns
    assert compare.main(arguments) == text
    assert (tmp_path / "runs" / "full" / "seed-1" / "checkpoint.pt").stat().st_mtime_ns == made
    with pytest.raises(ValueError, match=r"variants must be among baseline, .*received 'best'"):
        compare.variant_settings(arguments, "best", 0)
    with pytest.raises(ValueError, match=r"made with other settings; choose another --out(.|\n)*epochs: 1 -> 2"):
        compare.main(replace(arguments, epochs=2))


def test_samples_without_caption_are_left_out_of_the_loss_on_the_text(folder, tmp_path):
    some = tmp_path / "set"
    shutil.copytree(folder, some)
    entries = json.loads((some / "text" / "train.json").read_text())
    (some / "text" / "train.json").write_text(json.dumps(entries[::2]))
    settings = tiny(some, tmp_path / "out", captions="optional", epochs=1)
    dataset = train_dataset(settings)
    run = start(settings, dataset)
    seen = []
    run.loss.terms["T"].register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
    loader = DataLoader(dataset, 10, collate_fn=collate)
    train_epoch(run, dataset, loader, torch.device("cpu"), quiet=True)
    assert sum(seen) == len(entries[::2]) == 10


def test_a_run_resumes_by_another_way_to_the_same_data(folder, tmp_path, monkeypatch):
    train(tiny(folder, tmp_path / "out", epochs=1), quiet=True)
    monkeypatch.chdir(folder.parent)
    relative = tiny(Path(folder.name), tmp_path / "out", epochs=1)
    assert relative.differences(tiny(folder, tmp_path / "out", epochs=1)) == []
    train(relative, resume=True, quiet=True)
    assert relative.differences(tiny(folder.parent, tmp_path / "out", epochs=1)) == [
        f"data: {folder.parent} -> {folder.name}"
    ]


def test_the_learning_rate_rises_then_falls_to_a_tenth():
    assert rate(0.05, 0.1) == pytest.approx(0.5)
    assert rate(0.1, 0.1) == pytest.approx(1)
    assert rate(1, 0.1) == pytest.approx(0.1)
    assert rate(0.55, 0.1) == pytest.approx(0.55)
    assert rate(0.5, 0.0) < 1
    assert rate(0.5, 2.0) == pytest.approx(0.25)


@pytest.mark.skipif(not REAL.exists(), reason="the real images are not beside the project")
@pytest.mark.parametrize(
    ("name", "modalities", "query_cameras"),
    [("naip_parcels", ("RGB", "NI"), (3,)), ("naip_places", ("RGB", "NI"), (3,)), ("aero_rgbt", ("RGB", "TI"), ())],
)
def test_real_images_train_and_evaluate(name, modalities, query_cameras, tmp_path):
    changes = {"modalities": modalities, "query_cameras": query_cameras, "epochs": 1, "image_size": (32, 32)}
    captions = "optional" if name == "naip_places" else "off"
    metrics = train(tiny(REAL / name, tmp_path, captions=captions, **changes), quiet=True)
    assert 0 < metrics["U"].mAP <= 1
    assert metrics["U"].num_skipped == 0
