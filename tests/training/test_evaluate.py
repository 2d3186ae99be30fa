"""The trainer and the evaluation on the layouts of the benchmarks, by the command line's own names."""

import json
from pathlib import Path

import pytest
import torch
import tyro

from benchmark_folders import msvr310, noise, panels, rgbnt201
from examples.stmi import evaluate
from examples.stmi.settings import Settings
from examples.stmi.train import train


def tiny(data: Path, out: Path, **changes) -> Settings:
    values = {
        "image_size": (16, 16),
        "patch_size": 8,
        "dim": 16,
        "depth": 1,
        "num_heads": 2,
        "stem_width": 8,
        "num_tokens": 2,
        "masks": "none",
        "epochs": 1,
        "warmup_epochs": 0.5,
        "identities_per_batch": 3,
        "images_per_identity": 2,
        "threads": 1,
        "device": "cpu",
    }
    return Settings(data=data, out=out, **{**values, **changes})


def run(out: Path, *arguments: object) -> dict:
    """Evaluate by the command line; what it returns."""
    command = ["--checkpoint", str(out / "checkpoint.pt"), "--device", "cpu", *map(str, arguments)]
    return evaluate.main(tyro.cli(evaluate.Arguments, args=command))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder set with a column of its own, and a run on it."""
    root, out = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("run")
    rgbnt201(root, "train", 12, range(3), range(1, 3), noise)
    rgbnt201(root, "test", 12, range(3, 6), range(1, 3), noise)
    lines = [
        f"{file.name},{number % 3}" for split in ("train", "test") for number, file in enumerate(_sorted(root, split))
    ]
    (root / "items.csv").write_text("\n".join(["item,session", *lines]))
    train(tiny(root, out), quiet=True)
    return root, out


def _sorted(root: Path, split: str) -> list[Path]:
    return sorted((root / split / "RGB").iterdir())


def test_msvr310_trains_and_drops_scenes(tmp_path: Path, capsys) -> None:
    root, out = tmp_path / "MSVR310", tmp_path / "run"
    msvr310(root, "bounding_box_train", 12, range(3), range(2), range(2), noise)
    msvr310(root, "bounding_box_test", 12, range(3, 6), range(2), range(2), noise)
    msvr310(root, "query3", 6, range(3, 6), range(2), range(2), noise)
    metrics = train(tiny(root, out))
    protocol = (
        "the query split queries the gallery, 6 against 12; same identity and scene dropped; 0 of 6 queries skipped"
    )
    assert f"protocol: {protocol}" in capsys.readouterr().out
    written = json.loads((out / "metrics.json").read_text())
    assert (written["protocol"], written["queries"]) == (protocol, 6)
    assert run(out) == metrics
    assert protocol in capsys.readouterr().out
    assert run(out, "--drop", "view") == metrics  # here, scenes and views go together
    assert run(out, "--drop", "name")["U"].average_precision.shape == (6,)


def test_rgbnt100_trains_from_panels(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        noise(path, (128, 768))

    panels(tmp_path / "rgbir", "bounding_box_train", 6, range(1, 4), range(1, 3), write)
    panels(tmp_path / "rgbir", "bounding_box_test", 6, range(51, 54), range(1, 3), write)
    panels(tmp_path / "rgbir", "query", 3, range(51, 54), range(1, 3), write)
    metrics = train(tiny(tmp_path, tmp_path / "run"), quiet=True)
    assert (metrics["U"].num_queries, metrics["U"].num_skipped) == (3, 0)


def test_own_columns_and_reranking_are_flags(plain: tuple[Path, Path], tmp_path: Path, capsys) -> None:
    _, run_folder = plain
    metrics = run(run_folder, "--drop", "session", "--rerank", "--out", tmp_path, "--threads", "1")
    printed = capsys.readouterr().out
    assert "all query all, 12 against 12; same identity and session dropped; 0 of 12 queries skipped" in printed
    assert "after k-reciprocal re-ranking:" in printed
    written = json.loads((tmp_path / "metrics.json").read_text())
    assert written["reranked"].keys() == written["descriptors"].keys()
    assert written["descriptors"]["U"]["mAP"] == metrics["U"].mAP
    assert (tmp_path / "retrieval.png").exists()
    with pytest.raises(ValueError, match=r"identity, camera, session; received 'week'; .*\(--match, --drop\)"):
        run(run_folder, "--drop", "week", "--out", tmp_path)


def test_incomplete_and_damaged_data_need_their_flags(plain: tuple[Path, Path], tmp_path: Path) -> None:
    _, run_folder = plain
    other = tmp_path / "other"
    rgbnt201(other, "test", 12, range(3, 6), range(1, 3), noise)
    (other / "test" / "NI" / "000003_cam1_0_00.jpg").unlink()
    (other / "test" / "TI" / "000004_cam1_0_00.jpg").write_bytes(b"no image")
    flags = ["--data", other, "--out", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"1 images are missing .*: NI/000003_cam1_0_00; .*\(--missing-modality\)"):
        run(run_folder, *flags)
    with pytest.raises(ValueError, match=r"1 of 35 files cannot be used; .*\(--damaged skip\)"):
        run(run_folder, *flags, "--missing-modality", "absent")
    with pytest.warns(UserWarning, match="1 of 35 files cannot be used, 1 items are left out"):
        assert run(run_folder, *flags, "--missing-modality", "absent", "--damaged", "skip")["U"].num_queries == 11
    with pytest.warns(UserWarning, match="are left out") as caught:
        assert run(run_folder, *flags, "--missing-modality", "skip", "--damaged", "skip")["U"].num_queries == 10
    assert len(caught) == 2


def test_threads_are_set(plain: tuple[Path, Path], tmp_path: Path, monkeypatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    run(plain[1], "--threads", "1", "--out", tmp_path)
    run(plain[1], "--out", tmp_path)
    assert asked == [1]
