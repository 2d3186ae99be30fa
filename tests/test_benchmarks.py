"""Benchmark suite: wrong results and missed targets are reported; no test depends on a time."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import large, older, report
from benchmarks.runner import Comparison, Contender, Target, first_call, run
from stmi_layers.kernels import merged


def always(value: float):
    return lambda: (torch.full((2,), value),)


def comparison(*targets: Target, ours: float = 1.0) -> Comparison:
    contenders = {"plain": Contender(always(1.0), always(1.0)), "ours": Contender(always(ours), always(1.0))}
    return Comparison("a sum", contenders, targets)


def main(monkeypatch: pytest.MonkeyPatch, folder: Path, item: Comparison, *options: str) -> int:
    out = folder / "found.json"
    monkeypatch.setattr(command, "TOPICS", {"losses": SimpleNamespace(comparisons=lambda device: [item])})
    monkeypatch.setattr(report, "DOCS", folder)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--seconds", "0", "--turns", "3", "--out", str(out), *options])
    return command.main()


def test_a_wrong_contender_ends_the_run():
    with pytest.raises(AssertionError, match=r"ours is wrong: its relative error is 1\.0e\+00, allowed is 1\.0e-04"):
        run(comparison(ours=2.0), "cpu", seconds=0, turns=1)


@pytest.mark.parametrize("values", [(float("nan"), 1.0), (1.0, float("nan"))])
def test_nan_is_wrong(values):
    outputs, expected = ([torch.tensor([value]) for value in row] for row in (values, (1.0, 1.0)))
    with pytest.raises(AssertionError, match="relative error is nan"):
        first_call("ours", Contender(lambda: tuple(outputs), lambda: tuple(expected)), "cpu")


@pytest.mark.parametrize("warm_up", [True, False])
def test_memory_is_that_of_one_call(warm_up):
    contender = Contender(lambda: (torch.zeros(2**20),), lambda: (torch.zeros(2**20) + 1,), 1.0, warm_up=warm_up)
    assert first_call("ours", contender, "cpu").mebibytes == pytest.approx(4.0, abs=0.01)


@pytest.mark.parametrize(("limit", "status"), [(1e9, 0), (0.0, 1)])
def test_check_fails_when_a_target_is_missed(limit, status, monkeypatch, tmp_path, capsys):
    assert main(monkeypatch, tmp_path, comparison(Target("time", limit)), "--check") == status
    assert ("missed targets:\na sum, time: " in capsys.readouterr().err) == bool(status)


def test_docs_get_the_table_of_what_was_measured_alone(monkeypatch, tmp_path):
    (tmp_path / "tables").mkdir()
    drawn: list[Path] = []
    monkeypatch.setattr(command.profiles, "draw", drawn.append)
    assert main(monkeypatch, tmp_path, comparison(Target("time", 0.0)), "--docs") == 0
    assert drawn == [tmp_path]
    (written,) = (tmp_path / "tables").iterdir()
    assert written.name == "benchmarks-cpu-losses.md"
    origin, _, head, _, row = written.read_text().splitlines()
    assert origin.startswith("`python -m benchmarks --seconds 0 --turns 3 --docs`, ")
    assert head == "| what | ours | target | spread | memory | against |"
    assert row.startswith("| a sum | **")
    assert row.endswith("| plain |")
    assert json.loads((tmp_path / "found.json").read_text())["results"][0]["name"] == "a sum"


def test_table_has_a_column_per_form_and_marks_every_kind_of_target():
    values = {"milliseconds": 1.0, "ratio_low": 0.5, "ratio_high": 2.0, "error": 1e-3}
    result = {
        "name": "attention",
        "against": "plain",
        "contenders": {
            "plain": {**values, "ratio": 1.0, "mebibytes": 4.0},
            "ours": {**values, "ratio": 1.2, "mebibytes": 2.0},
            "ours, widened": {**values, "ratio": 0.7, "mebibytes": 1.0},
        },
        "targets": [
            {"quantity": "time", "limit": 1.25, "measured": 1.2},
            {"quantity": "memory", "limit": 0.1, "measured": 0.5},
            {"quantity": "error", "limit": 1.5, "measured": 1.0},
        ],
    }
    head, _, row = report.table([result]).splitlines()
    assert head == "| what | ours | target | spread | ours, widened | memory | error | against |"
    assert row == "| attention | 1.20 | ≤ 1.25 | 0.50 to 2.00 | 0.70 | **0.50** (≤ 0.1) | 1.00 (≤ 1.5) | plain |"
    assert report.missed([result]) == ["attention, memory: 0.500, target 0.1"]


def test_the_table_of_large_sizes_tells_another_result_from_the_same_and_a_missed_target_from_a_reached_one():
    found = {
        "ours": [large.Found(seconds, 100.0, "a") for seconds in (1.0, 2.0, 4.0)],
        "same": [large.Found(4.0, 50.0, "a")] * 3,
        "other": [large.Found(8.0, 200.0, digest) for digest in "aab"],
    }
    rows = [large.Row("search", "ours", name, name, limit) for name, limit in (("same", 0.4), ("other", 0.4))]
    lines = large.table(rows, found).splitlines()[-2:]
    assert lines == [
        "| search | **0.50** | ≤ 0.4 | 0.25 to 1.00 | 2.0 | 100 | 2.00 | yes | same |",
        "| search | 0.25 | ≤ 0.4 | 0.12 to 0.50 | 2.0 | 100 | 0.50 | no | other |",
    ]


def test_a_topic_that_needs_variables_runs_in_a_process_that_has_them(monkeypatch, tmp_path):
    wanted = {"STMI_LAYERS_WANTED": "yes"}
    record = {"topic": "older", "name": "of the process"}
    seen: list[str] = []

    def run_process(words: list[str], *, env: dict[str, str], **_: object) -> None:
        assert env.items() >= wanted.items()
        seen.extend(words)
        Path(words[words.index("--out") + 1]).write_text(json.dumps({"results": [record]}))

    monkeypatch.setattr(command.older, "ENVIRONMENT", wanted)
    monkeypatch.setattr(command.subprocess, "run", run_process)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "older", "--turns", "3", "--processor-time"])
    assert command.needs_process("older", "cpu")
    assert command.in_process("older", command.parse()) == [record]
    assert seen[3:9] == ["--only", "older", "--seconds", "1.0", "--turns", "3"]
    assert "--processor-time" in seen
    monkeypatch.setenv("STMI_LAYERS_WANTED", "yes")
    assert not command.needs_process("older", "cpu")
    assert not command.needs_process("losses", "cpu")


def test_without_its_instructions_bfloat16_is_computed_in_tiles(monkeypatch):
    monkeypatch.setattr(merged, "_multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(merged, "attend", lambda *_: pytest.fail("took the form of a processor with the instructions"))
    problem = older._Older("cpu", 300, 1, torch.bfloat16, backward=False, share=1 / 3)
    problem.ours(*problem.vectors)
