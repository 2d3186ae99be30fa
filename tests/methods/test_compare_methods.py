"""Comparison of methods: entrants and their settings, the rule of the table, equal CPU time, and kept runs."""

import dataclasses
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import cli, compare, compare_methods, cost
from examples.compare_methods import Options, fit_epochs, places_of, results_of, try_rates, with_rate
from examples.comparison_missing import missing_rule
from examples.comparison_rates import best_rate, table_of_tries
from examples.entrants import OWN, entrants, rows_of
from examples.methods import METHODS, load_method
from examples.run import Run
from examples.towers.tower import Tower
from sets import write_set
from stmi_layers.training import Data, Machine, Schedule

# Methods that read captions.
CAPTIONS = {"stmi", "next", "idea", "segtext"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a thread, because a new process would spend seconds on imports."""
    monkeypatch.setattr(compare, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(1))


def shared(folder: Path, **changes: Any) -> dict[str, Any]:
    """Records of runs that take a second."""
    small: dict[str, Any] = {"epochs": 2, "warmup_epochs": 0.5, "identities_per_batch": 3, "images_per_identity": 2}
    records = {
        "data": Data(folder, ("RGB", "NI"), (16, 16)),
        "schedule": Schedule(**small),
        "machine": Machine(device="cpu", threads=1, quiet=True),
        "tower": Tower(patch_size=4, dim=16, depth=1, tower_heads=2),
    }
    for name, record in records.items():
        own = {key: value for key, value in changes.items() if key in {one.name for one in dataclasses.fields(record)}}
        records[name] = dataclasses.replace(record, **own)
    return records


def rows(folder: Path, *names: str, inputs: tuple[Any, ...] = ("images",), **changes: Any) -> dict[str, Run]:
    return rows_of(shared(folder, **changes), names, inputs)


# Who takes part


def test_every_method_and_both_baselines_take_part_with_what_they_read(folder: Path):
    assert list(entrants()) == [*METHODS, "concatenation", "cnn"]
    found = rows(folder, inputs=("images", "masks", "captions", "masks+captions"), tower_heads=4, dim=64)
    named = {label.partition(" + ")[0] for label in found}
    assert named == {*METHODS, "concatenation", "cnn"}
    assert {label.removesuffix(" + captions") for label in found if label.endswith("captions")} == {
        name + more for name in CAPTIONS for more in ("", " + masks")
    }
    for label, run in found.items():
        assert run.data.masks == ("none" if "masks" not in label else "blank" if "cnn" in label else "given"), label
        assert run.data.captions == ("required" if "captions" in label else "off"), label


def test_what_is_shared_is_shared_and_the_rest_is_the_methods_own(folder: Path):
    found = rows(folder, "stmi", "signal", "cnn", weight_decay=0.01, query_cameras=(2,), depth=3)
    for label, run in found.items():
        assert (run.schedule.epochs, run.schedule.weight_decay, run.data.query_cameras) == (2, 0.01, (2,)), label
        assert run.tower is not None
        assert (run.tower.depth, run.tower.dim, run.machine.threads) == (3, 16, 1), label
        assert run.tower.backbone == ("cnn" if label == "cnn" else "vit")
    assert found["signal"].schedule.term_weights == {"GAM": 0.2, "LAM": 0.2}
    assert (found["stmi"].own.reallocation, found["cnn"].own.reallocation) == (True, False)


def test_defaults_of_methods_set_nothing_that_is_shared():
    allowed = {*OWN, *(one.name for method in METHODS for one in dataclasses.fields(load_method(method).settings))}
    for method in METHODS:
        names = {name.partition(".")[0] for name in load_method(method).default}
        assert names - allowed <= {"modulated_blocks"}, method


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"masks": "ones"}, r"set by --inputs, .*received \['--masks'\]"),
        ({"term_weights": {"GAM": 1.0}}, r"each method sets the rest; received \['--term-weights'\]"),
    ],
)
def test_what_a_method_sets_itself_is_refused(folder: Path, changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        rows(folder, "stmi", **changes)


def test_unknown_names_and_rows_without_use_are_refused(folder: Path):
    with pytest.raises(ValueError, match=r"methods must be .*received 'best'"):
        rows(folder, "stmi", "best")
    with pytest.raises(ValueError, match="inputs must suit at least one of the methods; received captions"):
        rows(folder, "cnn", inputs=("captions",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu_minutes": -1.0}, "cpu_minutes must be finite and at least 0; received -1"),
        ({"learning_rates": (1e-3, 0.0)}, "learning_rates must be positive; received"),
        ({"seeds": ()}, "seeds must be at least one, all different; received"),
        ({"inputs": ("images", "images")}, "inputs must be at least one, all different; received"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        Options(Path(), **options)


def test_the_command_line_has_the_shared_records():
    line = ["--out", "runs", "--data", "set", "--equal", "cpu", "--epochs", "7", "--dim", "64", "--validation", "0.3"]
    records, options = cli.parse_shared(line, Options, "compare", "")
    assert (options.equal, options.out) == ("cpu", Path("runs"))
    assert records["data"] == Data(Path("set"), validation=0.3)
    assert (records["schedule"], records["tower"]) == (Schedule(epochs=7), Tower(dim=64))


# What is chosen and what is equal


def test_epochs_fit_into_the_minutes_of_the_most_costly_row(folder: Path):
    found = rows(folder, "stmi", "cnn", "concatenation", epochs=10)
    spent = {"stmi": (3.0, 5.0), "cnn": (0.9, 1.1), "concatenation": (1.6, 1.6)}
    results = {label: [{"training_cpu_minutes": minutes} for minutes in of_row] for label, of_row in spent.items()}

    def epochs(minutes: float) -> list[int]:
        return [run.schedule.epochs for run in fit_epochs(found, results, minutes).values()]

    assert epochs(0) == [10, 40, 25]
    assert epochs(2.0) == [5, 20, 12]
    assert epochs(0.1) == [1, 1, 1]


def test_a_rate_is_chosen_on_validation_identities_and_goes_to_the_tower_too(folder: Path, tmp_path: Path, monkeypatch):
    seen: list[Run] = []

    def train_all(runs: dict[Path, Run], options: Options) -> dict[Path, Any]:
        seen.extend(runs.values())
        best = {"cnn": 0.01, "concatenation": 0.001}
        scores = {out: float(run.schedule.learning_rate == best[out.parts[-3]]) for out, run in runs.items()}
        return {out: {"headline": "G", "descriptors": {"G": {"mAP": score}}} for out, score in scores.items()}

    monkeypatch.setattr(compare_methods, "train_all", train_all)
    options = Options(tmp_path, learning_rates=(0.001, 0.01), seeds=(4, 5))
    before = rows(folder, "cnn", "concatenation")
    tries = try_rates(before, options)
    assert {label: best_rate(tried) for label, tried in tries.items()} == {"cnn": 0.01, "concatenation": 0.001}
    assert {(run.data.validation, run.schedule.seed) for run in seen} == {(0.2, 4)}
    assert len(seen) == 4
    assert all(run.schedule.rates["backbone"] == run.schedule.learning_rate for run in seen)
    seen.clear()
    try_rates(rows(folder, "cnn", validation=0.4), options)
    assert {run.data.validation for run in seen} == {0.4}
    table, results = table_of_tries(tries, "")
    told = {label: [column.value(run) for column in table.columns.values()] for label, (run,) in results.items()}
    assert list(table.columns) == ["mAP at 0.001", "mAP at 0.01", "chosen"]
    assert told == {"cnn": [0, 100, 0.01], "concatenation": [100, 0, 0.001]}
    assert table.columns["chosen"].digits == 3


def test_a_run_that_has_its_best_rate_is_that_of_the_comparison_without_tries(folder: Path):
    (run,) = rows(folder, "cnn").values()
    assert with_rate(run, 0.002) is run
    assert with_rate(run, 0.001).schedule.rates["backbone"] == 0.001
    assert with_rate(run, 0.001).data.validation == 0
    lowered = run.changed({"learning_rate": 0.001})  # its tower keeps 0.002
    tuned = with_rate(lowered, 0.001)
    assert tuned != lowered
    options = Options(Path())
    assert places_of("cnn", run, options, {"cnn": run}) == places_of("cnn", run, options, None)
    assert places_of("cnn", tuned, options, {"cnn": lowered}) != places_of("cnn", lowered, options, None)


# Whole comparisons


def test_a_comparison_is_written_whole_and_repeats_nothing(folder: Path, tmp_path: Path, monkeypatch, in_this_process):
    monkeypatch.setattr(sys, "argv", ["compare", "--preset", "methods", "--equal", "epochs"])
    monkeypatch.setattr(compare, "DOCS", tmp_path / "docs")
    options = Options(
        tmp_path / "out", methods=("topreid", "cnn"), inputs=("images", "masks"), seeds=(0,), docs="tiny", missing=True
    )
    text = compare_methods.main(shared(folder), options)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    table, missing = lines[:5], lines[5:]
    assert table[0] == [
        "method",
        "by",
        *(name for name in compare_methods.SHOWN if name not in compare_methods.SETTINGS),
    ]
    assert missing[0] == ["method", "by", "mAP", "mAP without RGB", "mAP without NI"]
    for part in (table, missing):
        assert [line[0] for line in part[1:]] == ["topreid", "topreid + masks", "cnn", "cnn + masks"]
        assert all(float(cell) >= 0 for line in part[1:] for cell in line[2:])
    assert [line[2] for line in table] == [line[2] for line in missing]
    assert any(line[2] != line[3] for line in missing[1:])
    assert (
        "Equal for all: 2 epochs, learning rate 0.002. Scored on the test split (all query all, 20 against 20" in text
    )
    assert "Nothing was tried for single rows: each has its method's defaults." in text
    assert "python -m examples.compare --preset methods --equal epochs" in text
    made = {file: file.stat().st_mtime_ns for file in (tmp_path / "out/runs").rglob("*.json")}
    assert len(made) == 4 * 5  # metrics, settings, cost, and scores without each modality
    assert compare_methods.main(shared(folder), options) == text
    assert {file: file.stat().st_mtime_ns for file in made} == made
    published = [tmp_path / f"docs/tables/results-tiny-methods-epochs{more}.md" for more in ("", "-missing")]
    assert "\n".join(file.read_text() for file in published) == text
    content = json.loads((tmp_path / "out/methods-epochs/table.json").read_text())
    assert [run["label"] for run in content["runs"]] == [line[0] for line in table[1:]]
    with pytest.raises(ValueError, match=r"made with other settings(.|\n)*weight_decay: 0.05 -> 0.01"):
        compare_methods.main(shared(folder, weight_decay=0.01), options)


def test_a_table_of_missing_modalities_names_the_dropout_of_its_training(folder: Path):
    for dropout, trained in ((0.0, "all modalities"), (0.3, "each modality dropped with probability 0.3")):
        (run,) = rows(folder, "concatenation", modality_dropout=dropout).values()
        assert missing_rule(run).startswith(f"Runs trained with {trained}, scored by mAP with all, and again without ")


def test_equal_cpu_time_stands_on_equal_epochs_and_tries_are_told(folder: Path, tmp_path: Path, in_this_process):
    asked = shared(folder, validation=0.4)
    options = Options(tmp_path, equal="cpu", methods=("concatenation", "cnn"), seeds=(0,), learning_rates=(1e-3, 2e-3))
    text = compare_methods.main(asked, options)
    assert "CPU minutes of training, as whole epochs at the speed measured over 2 epochs" in text
    assert "Scored on 40 % of the training identities, held out" in text
    assert "the best of 2 tries (0.001, 0.002) by mAP on 40 % of the training identities, held out, with seed 0" in text
    tries = json.loads((tmp_path / "methods-tries/table.json").read_text())["runs"]
    assert [(run["label"], run["seed"]) for run in tries] == [("concatenation", 0), ("cnn", 0)]
    content = json.loads((tmp_path / "methods-cpu-tuned/table.json").read_text())
    results = {run["label"]: run["result"] for run in content["runs"]}
    assert {result["split"] for result in results.values()} == {"validation"}
    assert {result["queries"] for result in results.values()} == {8}
    assert max(result["epochs"] for result in results.values()) >= 2
    for result in results.values():
        assert result["learning_rate"] in (1e-3, 2e-3)
    tried = {out.parent.name for out in tmp_path.glob("runs/cnn/try-*/seed-0")}
    assert tried == {"try-0.001", "try-0.002"}
    asked = {"epochs-2" if run["result"]["chosen"] == 0.002 else "epochs-2-rate-0.001" for run in tries}
    assert asked <= {out.parent.name for out in tmp_path.glob("runs/*/epochs-2*/seed-0")}


def test_results_have_one_cost_for_all_seeds(folder: Path, tmp_path: Path, in_this_process):
    options = Options(tmp_path, methods=("concatenation",), seeds=(0, 1))
    (results,) = results_of(rows(folder, "concatenation", epochs=1), options).values()
    assert results[0]["cost"] == results[1]["cost"]
    records = [json.loads(file.read_text()) for file in sorted(tmp_path.rglob("settings.json"))]
    assert [record["schedule"]["seed"] for record in records] == [0, 1]
    (kept,) = tmp_path.rglob("cost.json")
    made = kept.stat().st_mtime_ns
    checkpoint, machine = kept.with_name("checkpoint.pt"), Machine(device="cpu", threads=1, quiet=True)
    assert cost.cost_of(checkpoint, machine) == results[0]["cost"]
    assert kept.stat().st_mtime_ns == made
    kept.write_text("{")
    assert cost.cost_of(checkpoint, machine)["parameters"] == results[0]["cost"]["parameters"]


def test_the_peak_is_what_is_held_at_once():
    def call() -> torch.Tensor:
        first = torch.zeros(1000, 1000)  # 4 MB
        first = first + 1  # and another 4 MB
        return first.sum() + torch.zeros(500, 1000).sum()

    assert 8e6 <= cost.peak_bytes(call, torch.device("cpu")) < 8.1e6
