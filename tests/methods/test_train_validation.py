"""Commands with `--validation`: training and scores on two parts of the training identities, the test split unread."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tyro

from examples import cli, evaluate
from examples.train import Options, train
from sets import tiny, write_set
from stmi_layers.training import read_checkpoint

SETTINGS: dict[str, Any] = {"validation": 0.4, "identities_per_batch": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def held_out(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was scored on two of five training identities."""
    out = tmp_path_factory.mktemp("run")
    train(tiny(folder, **SETTINGS), out)
    return out


def scored(out: Path, *arguments: str) -> dict[str, Any]:
    """What `examples.evaluate` writes of a run."""
    command = ["--checkpoint", str(out / "checkpoint.pt"), "--device", "cpu", *arguments]
    evaluate.main(tyro.cli(evaluate.Arguments, args=command))
    return json.loads((out / "evaluation" / "metrics.json").read_text())


def test_metrics_name_the_split_and_count_its_queries(folder: Path, held_out: Path, capsys, tmp_path: Path):
    written = json.loads((held_out / "metrics.json").read_text())
    assert (written["split"], written["queries"]) == ("validation", 8)
    assert "best_epoch_by_validation" in written
    assert "best_epoch_by_test" not in written
    train(tiny(folder, **SETTINGS, quiet=False, epochs=1), tmp_path)
    assert "scored on 2 identities held out of the training split, not on the test split" in capsys.readouterr().out


def test_nothing_of_the_test_split_is_read(folder: Path, held_out: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "test")
    train(tiny(tmp_path / "set", **SETTINGS), tmp_path / "run")
    one, other = (json.loads((out / "metrics.json").read_text()) for out in (held_out, tmp_path / "run"))
    assert one["descriptors"] == other["descriptors"]


def test_held_out_identities_are_not_trained_on(held_out: Path):
    classifiers = [
        value for name, value in read_checkpoint(held_out / "checkpoint.pt").objective.items() if value.ndim == 2
    ]
    assert classifiers
    assert {len(weight) for weight in classifiers} == {3}


def test_evaluation_repeats_the_run_and_scores_the_test_split_when_asked(folder: Path, held_out: Path, tmp_path: Path):
    of_run = json.loads((held_out / "metrics.json").read_text())
    again = scored(held_out)
    assert (again["split"], again["descriptors"]) == ("validation", of_run["descriptors"])
    on_test = scored(held_out, "--validation", "0")
    assert (on_test["split"], on_test["queries"]) == ("test", 20)
    shutil.copytree(folder, tmp_path / "other")
    assert scored(held_out, "--data", str(tmp_path / "other"))["split"] == "test"
    assert scored(held_out, "--data", str(tmp_path / "other"), "--validation", "0.4")["split"] == "validation"


def test_the_command_line_has_the_flags_and_resume_keeps_the_identities(folder: Path, held_out: Path):
    line = ("stmi", "--data", str(folder), "--out", "runs", "--validation", "0.2", "--validation-seed", "3")
    data = cli.parse_run(line, Options, "python -m examples.train", "")[0].data
    assert (data.validation, data.validation_seed) == (0.2, 3)
    with pytest.raises(ValueError, match=r"made with other settings(.|\n)*data.validation_seed: 0 -> 1"):
        train(tiny(folder, **SETTINGS, validation_seed=1), held_out, resume=True)
