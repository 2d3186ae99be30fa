"""Training and evaluation on the layouts of the benchmarks, by their names on the command line."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro

from benchmark_folders import msvr310, noise, panels, rgbnt201
from examples import evaluate, robustness
from examples.groups import score_groups
from examples.preset import Row
from examples.restore import restore
from examples.robustness import score_under
from examples.run import Run
from examples.train import train
from no_pictures import pictures
from processes import as_command, said
from sets import tiny as tiny_run
from stmi_layers.training import Item, Machine, Protocol, read_checkpoint, save_checkpoint

MACHINE = Machine(device="cpu", threads=1, quiet=True)


def tiny(data: Path, **changes: Any) -> Run:
    small = {"modalities": ("RGB", "NI", "TI"), "captions": "off", "masks": "none", "epochs": 1, "warmup_epochs": 0.5}
    return tiny_run(data, **{**small, "patch_size": 8, "identities_per_batch": 3, **changes})


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
    with pictures():
        train(tiny(root), out)
    return root, out


def _sorted(root: Path, split: str) -> list[Path]:
    return sorted((root / split / "RGB").iterdir())


def test_msvr310_trains_and_drops_scenes(tmp_path: Path, capsys) -> None:
    root, out = tmp_path / "MSVR310", tmp_path / "run"
    msvr310(root, "bounding_box_train", 12, range(3), range(2), range(2), noise)
    msvr310(root, "bounding_box_test", 12, range(3, 6), range(2), range(2), noise)
    msvr310(root, "query3", 6, range(3, 6), range(2), range(2), noise)
    metrics = train(tiny(root, quiet=False), out)
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


def test_the_queries_of_a_group_rank_the_whole_gallery(plain: tuple[Path, Path], capsys) -> None:
    _, out = plain
    whole = run(out, "--groups", "session")["U"].average_precision
    assert "queries of session 2, 4:" in capsys.readouterr().out
    written = json.loads((out / "evaluation" / "metrics.json").read_text())["groups"]
    for group in range(3):  # the sessions of a split are dealt in turn
        assert written[str(group)]["U"]["mAP"] == pytest.approx(whole[group::3].mean().item())
    assert score_under(out / "checkpoint.pt", Row("", "", groups="session"), MACHINE)["groups"] == written
    assert len({scores["U"]["mAP"] for scores in written.values()}) > 1
    with pytest.raises(
        ValueError, match=r"groups must name columns of the set, .*received 'day', which .* has no value of"
    ):
        run(out, "--groups", "day")


def test_query_cameras_keep_their_gallery_in_a_group() -> None:
    items = [Item(f"{n}", n // 4, (), (), camera=1 + n % 2, columns={"kind": "ab"[n // 4 % 2]}) for n in range(16)]
    descriptors = {"U": torch.randn(16, 3, generator=torch.Generator().manual_seed(0))}
    protocol = Protocol(query_cameras=(1,))
    whole = protocol.score(descriptors["U"], items).average_precision
    found = score_groups(descriptors, items, protocol, "kind")
    assert found["a"]["U"].average_precision.tolist() == whole[[0, 1, 4, 5]].tolist()
    assert found["b"]["U"].average_precision.tolist() == whole[[2, 3, 6, 7]].tolist()


def test_rgbnt100_trains_from_panels(tmp_path: Path) -> None:
    def write(path: Path) -> None:
        noise(path, (128, 768))

    panels(tmp_path / "rgbir", "bounding_box_train", 6, range(1, 4), range(1, 3), write)
    panels(tmp_path / "rgbir", "bounding_box_test", 6, range(51, 54), range(1, 3), write)
    panels(tmp_path / "rgbir", "query", 3, range(51, 54), range(1, 3), write)
    metrics = train(tiny(tmp_path), tmp_path / "run")
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
    assert run(run_folder, "--junk", "3", "--out", tmp_path)["U"].num_queries == 8
    assert "4 junk items ignored" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"identity, camera, session; received 'week'"):
        run(run_folder, "--drop", "week", "--out", tmp_path)


def test_incomplete_and_damaged_data_need_their_flags(plain: tuple[Path, Path], tmp_path: Path) -> None:
    _, run_folder = plain
    other = tmp_path / "other"
    rgbnt201(other, "test", 12, range(3, 6), range(1, 3), noise)
    (other / "test" / "NI" / "000003_cam1_0_00.jpg").unlink()
    (other / "test" / "TI" / "000004_cam1_0_00.jpg").write_bytes(b"no image")
    flags = ["--data", other, "--out", tmp_path / "out"]
    with pytest.raises(ValueError, match=r"1 images are missing .*: NI/000003_cam1_0_00; .*missing_modality='absent'"):
        run(run_folder, *flags)
    with pytest.raises(ValueError, match=r"1 of 35 files cannot be used; .*damaged='skip'"):
        run(run_folder, *flags, "--missing-modality", "absent")
    with pytest.warns(UserWarning, match="1 of 35 files cannot be used, 1 items are left out"):
        assert run(run_folder, *flags, "--missing-modality", "absent", "--damaged", "skip")["U"].num_queries == 11
    with pytest.warns(UserWarning, match="are left out") as caught:
        assert run(run_folder, *flags, "--missing-modality", "skip", "--damaged", "skip")["U"].num_queries == 10
    assert len(caught) == 2


def test_threads_are_set_when_they_are_asked_for(plain: tuple[Path, Path], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        run(plain[1], "--out", tmp_path)
        assert torch.get_num_threads() == 2
        run(plain[1], "--threads", "1", "--out", tmp_path)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.usefixtures("pictures")
def test_evaluation_of_a_checkpoint_repeats_the_result_and_needs_it_alone(plain, tmp_path: Path) -> None:
    root, run_folder = plain
    shutil.copy(run_folder / "checkpoint.pt", tmp_path / "checkpoint.pt")
    metrics = run(tmp_path, "--query-cameras", "2", "--features")
    assert metrics["U"].num_queries == 6
    written = tmp_path / "evaluation"
    assert {path.suffix for path in written.iterdir()} == {".json", ".png", ".safetensors"}
    names = json.loads((written / "names.json").read_text())
    assert names == [path.stem for path in _sorted(root, "test")]
    again = run(tmp_path)
    trained = json.loads((run_folder / "metrics.json").read_text())
    evaluated = json.loads((written / "metrics.json").read_text())
    assert evaluated["descriptors"] == trained["descriptors"]
    assert (written / "retrieval.png").read_bytes() == (run_folder / "retrieval.png").read_bytes()
    assert again["U"].mAP == trained["descriptors"]["U"]["mAP"]
    with pytest.raises(ValueError, match=r"query_cameras must be cameras of the items, \[1, 2\]"):
        run(tmp_path, "--query-cameras", "7")


def test_another_descriptor_stands_for_the_evaluation(plain, tmp_path: Path) -> None:
    assert "G+U" in run(plain[1], "--descriptor", "G+U", "--out", tmp_path)
    assert json.loads((tmp_path / "metrics.json").read_text())["headline"] == "G+U"
    with pytest.raises(ValueError, match=r"descriptor must be one the model has, \['G', 'U'\], .*; received 'T'"):
        run(plain[1], "--descriptor", "T", "--out", tmp_path)


def test_conditions_are_a_command(plain, capsys) -> None:
    line = ["--checkpoint", str(plain[1] / "checkpoint.pt"), "--keep", "RGB", "--device", "cpu", "--threads", "1"]
    result = robustness.main(tyro.cli(robustness.Arguments, args=line))
    assert result["descriptors"].keys() == {"G", "U", "all"}
    assert [text.split()[0] for text in capsys.readouterr().out.splitlines()] == ["G", "U", "all"]


@pytest.mark.parametrize(
    ("record", "change", "message"),
    [
        ("own", {"colour": 1}, r"does not fit this version: Settings must have exactly its fields; .*unknown colour"),
        ("tower", {"dim": "wide"}, r"does not fit this version: Tower\.dim must be int; received 'wide'"),
        (
            "run",
            {"method": "this"},
            r"does not fit this version: method must be stated for a package .*add --method this",
        ),
        ("run", {"method": 3}, r"does not fit this version: the run must name its method alone, as text; .*3"),
        ("run", {"more": 3}, r"does not fit this version: the run must name its method alone, as text; .*'more'"),
        ("tower", {"dim": -16}, r"does not fit this version: "),
        ("tower", {"patch_size": 0}, r"does not fit this version: "),
        (
            "facts",
            {"modalities": "RGB"},
            r"does not fit this version: Facts\.modalities must be tuple\[str, \.\.\.\]; .*'RGB'",
        ),
        (
            "facts",
            {"num_identities": "5"},
            r"does not fit this version: Facts\.num_identities must be int; received '5'",
        ),
        ("facts", {"colours": 5}, r"does not fit this version: Facts must have exactly its fields; .*unknown colours"),
        ("data", None, r"does not fit this version: the run must hold its records; received one without data"),
    ],
)
def test_a_checkpoint_of_another_version_is_refused_by_name(record, change, message, plain, tmp_path: Path) -> None:
    content = read_checkpoint(plain[1] / "checkpoint.pt")
    records = {name: dict(values) for name, values in content.records.items()}
    records[record].update(change or {})
    if change is None:
        del records[record]
    save_checkpoint(tmp_path / "checkpoint.pt", content._replace(records=records))
    with pytest.raises(ValueError, match=message):
        restore(tmp_path / "checkpoint.pt", machine=Machine(device="cpu"))


def test_a_package_of_ones_own_is_imported_when_it_is_stated_and_never_by_a_checkpoint(
    plain, tmp_path: Path, monkeypatch
) -> None:
    (tmp_path / "own_method").mkdir()
    (tmp_path / "own_method" / "settings.py").write_text("raise RuntimeError('it runs')\n")
    content = read_checkpoint(plain[1] / "checkpoint.pt")
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, content._replace(records=content.records | {"run": {"method": "own_method"}}))
    monkeypatch.syspath_prepend(tmp_path)
    command = (as_command, "examples.evaluate", "--checkpoint", path)
    message = said(*command, says=tmp_path / "said.txt")
    assert "method must be stated for a package of your own, because a file chooses no code to run" in message
    assert "--method own_method" in message
    assert "it runs" not in message
    assert "it runs" in said(*command, "--method", "own_method", says=tmp_path / "said.txt")
