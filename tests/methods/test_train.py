"""Training command on a tiny folder set: results, resumption, reproducibility, and refused arguments."""

import json
import os
import runpy
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from examples.restore import restore
from examples.run import Run, run_of
from examples.train import build_model, load_splits, train
from processes import CONTEXT, waiting
from sets import assert_same_weights, tiny, weights, write_set
from stmi_layers import ReIDLoss
from stmi_layers.training import IdentitySampler, Machine, collate, facts_of, loop, read_checkpoint

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.mark.usefixtures("pictures")
def test_a_run_writes_its_results(folder: Path, tmp_path: Path, capsys):
    run = tiny(folder, quiet=False)
    metrics = train(run, tmp_path)
    assert set(metrics) == {"G", "U", "T", "all"}
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["headline"] == "U"
    assert written["descriptors"]["U"]["mAP"] == metrics["U"].mAP
    assert written["best_epoch_by_test"]["epoch"] in (2, 3)
    assert written["watch"].keys() >= {"alpha/block_0", "beta/block_0", "hypergraph/mean_edge_size"}
    assert run_of(json.loads((tmp_path / "settings.json").read_text())) == run.__class__(
        **{**vars(run), "machine": Machine()}
    )
    assert list((tmp_path / "tensorboard").iterdir())
    with Image.open(tmp_path / "curves.png") as curves, Image.open(tmp_path / "retrieval.png") as retrieval:
        assert curves.size != retrieval.size
    printed = capsys.readouterr().out
    assert "protocol: all query all, 20 against 20; same identity and camera dropped" in printed
    assert str(tmp_path / "retrieval.png") in printed


def test_a_step_of_stmi_is_the_one_written_out(folder: Path, tmp_path: Path):
    """One epoch again by hand, from eq. 19-20: what batches, seeds, losses, clipping, rates and decay come to."""
    changes = {"epochs": 1, "warmup_epochs": 0.5, "erasing": 0.5, "perturbation": 0.2, "seed": 3}
    train(tiny(folder, **changes), tmp_path)
    run = tiny(folder, **changes)
    dataset, _ = load_splits(run)
    model, _ = build_model(run, facts_of(dataset, run.data.modalities))
    losses = nn.ModuleDict({name: ReIDLoss(width, 5, smoothing=0.1) for name, width in model.widths.items()})
    dataset.encode_captions(model.encode)
    groups = model.parameter_groups()
    plain = [*groups["new"], *losses.parameters(), *groups["backbone"]]
    plain = [parameter for parameter in plain if parameter.requires_grad]
    both = [
        {"params": plain, "lr": 2e-3, "weight_decay": 0.05},
        {"params": groups["strengths"], "lr": 1e-2, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(both)
    torch.manual_seed(3 * 1_000_003)
    batches = list(IdentitySampler(dataset.labels, 5, 2, seed=3))
    assert len(batches) == 2
    for scale, indices in zip((1.0, 0.1), batches, strict=True):  # the end of the warm-up, and the last step
        batch = collate([dataset[index] for index in indices])
        features = model(batch).features
        loss = sum(losses[name](features[name], batch.labels) for name in ("G", "U", "T"))
        optimizer.zero_grad()
        loss.backward()
        learned = [parameter for group in both for parameter in group["params"]]
        norm = torch.stack([parameter.grad.norm() for parameter in learned]).norm()
        for parameter in learned:
            parameter.grad.mul_(min(1.0, 1.0 / (norm.item() + 1e-6)))
        for group, rate in zip(optimizer.param_groups, (2e-3, 1e-2), strict=True):
            group["lr"] = rate * scale
        optimizer.step()
    kept = weights(tmp_path)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(kept[name], value, rtol=1e-4, atol=2e-5, msg=name)


def test_training_lowers_the_loss(folder: Path, tmp_path: Path):
    train(tiny(folder, epochs=15, evaluate_every=15), tmp_path)
    history = read_checkpoint(tmp_path / "checkpoint.pt").history
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["watch"]["alpha/block_0"] != history[0]["watch"]["alpha/block_0"]


def test_a_seed_gives_the_same_metrics_and_another_other_weights(folder: Path, tmp_path: Path):
    first = train(tiny(folder, epochs=2), tmp_path / "a")
    second = train(tiny(folder, epochs=2, workers=2), tmp_path / "b")
    assert first == second
    assert_same_weights(tmp_path / "a", tmp_path / "b")
    train(tiny(folder, epochs=2, seed=1), tmp_path / "c")
    assert any(not torch.equal(value, weights(tmp_path / "c")[name]) for name, value in weights(tmp_path / "a").items())


def command(method: str, data: Path, out: Path, *flags: str, launcher: tuple[str, ...] = ("-m",)) -> list[str]:
    small = "--modalities RGB NI --image-size 16 16 --dim 16 --tower-heads 2 --num-heads 2 --num-tokens 2"
    batch = "--patch-size 4 --identities-per-batch 4 --images-per-identity 2 --captions required"
    batch += " --threads 1 --device cpu --quiet"
    words = [*small.split(), *batch.split(), "--data", str(data), "--out", str(out), *flags]
    return [sys.executable, *launcher, "examples.train", method, *words]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


def train_until_killed(run: Run, out: Path) -> None:
    """Train like a test."""
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    loop.save_checkpoint = waiting(loop.save_checkpoint, run.schedule.epochs)
    train(run, out)


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_weights(folder: Path, tmp_path: Path):
    run = tiny(folder, epochs=12, perturbation=0.2, erasing=0.5)
    train(run, tmp_path / "whole")
    process = CONTEXT.Process(target=train_until_killed, args=(run, tmp_path / "killed"))
    process.start()
    deadline = time.monotonic() + 300
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert process.is_alive(), "the run ended before it could be killed"
        time.sleep(0.001)
    process.kill()
    process.join()
    assert read_checkpoint(tmp_path / "killed" / "checkpoint.pt").epoch < 12
    train(run, tmp_path / "killed", resume=True)
    assert_same_weights(tmp_path / "whole", tmp_path / "killed")
    results = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("whole", "killed")]
    assert results[0]["descriptors"] == results[1]["descriptors"]


@pytest.mark.slow
def test_two_processes_end_where_one_does(folder: Path, tmp_path: Path, monkeypatch):
    flags = ("--epochs", "2", "--missing-modality", "absent", "--workers", "0")
    incomplete = tmp_path / "set"
    shutil.copytree(folder, incomplete)
    (incomplete / "train" / "NI" / "000000_cam1_0_00.png").unlink()
    monkeypatch.setattr(sys, "argv", command("stmi", incomplete, tmp_path / "one", *flags)[2:])
    monkeypatch.delitem(sys.modules, "examples.train")  # a second import under the name __main__, as `python -m` does
    runpy.run_module("examples.train", run_name="__main__", alter_sys=True)
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1", "--nproc-per-node=2", "-m")
    two = command("stmi", incomplete, tmp_path / "two", *flags, launcher=torchrun)
    subprocess.run(two, cwd=ROOT, env=environment(), check=True, capture_output=True)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-2, atol=2e-3, msg=name)
    assert (tmp_path / "two" / "retrieval.png").exists()
    assert json.loads((tmp_path / "two" / "metrics.json").read_text())["processes"] == 2


def test_a_finished_run_is_not_overwritten_and_other_settings_do_not_resume(folder: Path, tmp_path: Path):
    train(tiny(folder, epochs=1), tmp_path)
    with pytest.raises(FileExistsError, match="holds a run already: continue it with --resume"):
        train(tiny(folder, epochs=1), tmp_path)
    with pytest.raises(ValueError, match=r"made with other settings(.|\n)*tower.dim: 16 -> 32(.|\n)*epochs: 1 -> 2"):
        train(tiny(folder, epochs=2, dim=32), tmp_path, resume=True)


def test_resuming_nothing_starts_a_run_with_a_warning(folder: Path, tmp_path: Path):
    with pytest.warns(UserWarning, match=r"checkpoint\.pt does not exist: nothing to resume, .* starts at epoch 1"):
        train(tiny(folder, epochs=1), tmp_path, resume=True)
    assert read_checkpoint(tmp_path / "checkpoint.pt").epoch == 1
    train(tiny(folder, epochs=1), tmp_path, resume=True)


def test_a_run_resumes_by_another_way_to_the_same_data(folder: Path, tmp_path: Path, monkeypatch):
    train(tiny(folder, epochs=1), tmp_path / "out")
    monkeypatch.chdir(folder.parent)
    train(tiny(Path(folder.name), epochs=1), tmp_path / "out", resume=True)


def test_a_descriptor_the_model_lacks_is_refused_before_the_training(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"descriptor must be one the model has, .*received 'U'"):
        train(tiny(folder, reallocation=False, descriptor="U"), tmp_path)
    assert not (tmp_path / "checkpoint.pt").exists()


def test_joined_descriptors_are_concatenated_then_normalised(folder: Path, tmp_path: Path):
    metrics = train(tiny(folder, epochs=1, descriptor="G+T"), tmp_path)
    assert list(metrics) == ["G", "U", "T", "all", "G+T"]
    assert json.loads((tmp_path / "metrics.json").read_text())["headline"] == "G+T"
    trained = restore(tmp_path / "checkpoint.pt", machine=Machine(device="cpu", quiet=True))
    from examples.restore import describe_test

    found, chosen = describe_test(trained)
    batch = collate([trained.dataset[index] for index in range(len(trained.dataset))])
    with torch.no_grad():
        features = trained.model(batch).features
    parts = [F.normalize(features[name], dim=1) for name in ("G", "T")]
    torch.testing.assert_close(found[chosen], torch.cat(parts, dim=1) / 2**0.5)


def test_a_test_split_that_cannot_be_scored_is_refused_before_the_training(folder: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"query_cameras must be cameras of the items, \[1, 2\]; received \[3\]"):
        train(tiny(folder, query_cameras=(3,)), tmp_path / "out")
    one_camera = tmp_path / "set"
    shutil.copytree(folder, one_camera, ignore=shutil.ignore_patterns("text"))
    for image in (one_camera / "test").glob("*/*_cam2_*"):
        image.unlink()
    with pytest.raises(ValueError, match="no query has a positive in the gallery: received 10 queries"):
        train(tiny(one_camera, captions="off"), tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_a_missing_modality_is_an_error_or_absent(folder: Path, tmp_path: Path):
    incomplete = tmp_path / "set"
    shutil.copytree(folder, incomplete)
    (incomplete / "train" / "NI" / "000000_cam1_0_00.png").unlink()
    (incomplete / "test" / "RGB" / "000007_cam2_0_01.png").unlink()
    with pytest.raises(ValueError, match=r"000000_cam1_0_00"):
        train(tiny(incomplete), tmp_path / "strict")
    metrics = train(tiny(incomplete, missing_modality="absent"), tmp_path / "absent")
    assert 0 < metrics["U"].mAP <= 1


def test_samples_without_caption_are_left_out_of_the_loss_on_the_text(folder: Path, tmp_path: Path):
    some = tmp_path / "set"
    shutil.copytree(folder, some)
    entries = json.loads((some / "text" / "train.json").read_text())
    (some / "text" / "train.json").write_text(json.dumps(entries[::2]))
    run = tiny(some, captions="optional", epochs=1)
    dataset, _ = load_splits(run)
    model, _ = build_model(run, facts_of(dataset, run.data.modalities))
    dataset.encode_captions(model.encode)
    rows = model(collate([dataset[index] for index in range(len(dataset))])).rows["T"]
    assert rows.tolist() == [index % 2 == 0 for index in range(20)]
    assert 0 < train(run, tmp_path / "out")["T"].mAP <= 1


def test_a_method_of_two_files_trains_by_its_name(folder: Path, tmp_path: Path):
    changes: dict[str, Any] = {"epochs": 2, "agreement": True, "reads_captions": True, "masks": "none"}
    run = tiny(folder, "toy_method", **changes)
    assert isinstance(run, Run)
    assert run.tower is None
    assert set(train(run, tmp_path)) == {"whole", "text", "all"}
    restored = restore(tmp_path / "checkpoint.pt", machine=Machine(device="cpu"))
    assert (restored.run.method, restored.run.own.agreement) == ("toy_method", True)


@pytest.mark.slow
@pytest.mark.skipif(not REAL.exists(), reason="the real images are not beside the project")
@pytest.mark.parametrize(
    ("name", "modalities", "query_cameras", "queries"),
    [
        ("naip_parcels", ("RGB", "NI"), (3,), 50),
        ("naip_places", ("RGB", "NI"), (3,), 92),
        ("aero_rgbt", ("RGB", "TI"), (), 30),
    ],
)
def test_real_images_train_and_evaluate(
    name: str, modalities: tuple[str, ...], query_cameras, queries: int, tmp_path: Path
):
    changes = {"modalities": modalities, "query_cameras": query_cameras, "epochs": 1, "image_size": (32, 32)}
    captions = "optional" if name == "naip_places" else "off"
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*captions have more than 32 words")
        metrics = train(tiny(REAL / name, captions=captions, **changes), tmp_path)
    assert all(0 < found.mAP <= 1 and found.num_skipped == 0 for found in metrics.values())
    assert {found.num_queries for found in metrics.values()} == {queries}
