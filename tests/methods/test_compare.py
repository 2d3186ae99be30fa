"""Comparisons: settings of the presets, conditions at test time, tables, figures, and failing runs."""

import json
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from examples import compare
from examples.comparison_figure import draw
from examples.comparison_table import as_command, as_table, column_of, spread
from examples.preset import Column, Row
from examples.restore import without
from examples.robustness import score_under
from examples.run import Run
from examples.stmi.variants import COLUMNS, PRESETS, VARIANTS
from examples.train import load_splits, train
from processes import CONTEXT
from sets import tiny, write_set
from stmi_layers.training import Machine, MultiModalDataset, read_split
from stmi_layers.training.transforms import dilate, erode

MACHINE = Machine(device="cpu", threads=1, quiet=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of the full model."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(tiny(folder, epochs=2), out)
    return out


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a thread, because a new process would spend seconds on imports."""
    monkeypatch.setattr(compare, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(1))


def asked(
    folder: Path, out: Path, options: dict[str, Any] | None = None, **changes: Any
) -> tuple[Run, compare.Options]:
    return tiny(folder, **{"epochs": 1, **changes}), compare.Options(out, **(options or {}))


def value_of(run: Run, name: str) -> Any:
    return next(getattr(record, name) for record in run.records().values() if hasattr(record, name))


# Presets


def test_every_row_of_every_preset_is_a_run(folder, tmp_path):
    for name in PRESETS:
        run, options = asked(folder, tmp_path, {"preset": name}, depth=2)
        rows = compare.preset_of(run, options).rows
        assert len({row.label for row in rows}) == len(rows) >= 3, name
        for row in rows:
            compare.variant_run(run, options, row.variant, 1)
        for column in (*PRESETS[name].columns, *(one for panel in PRESETS[name].panels for one in panel)):
            column_of(column, COLUMNS)


@pytest.mark.parametrize(
    ("preset", "field", "values"),
    [
        ("modules", "reallocation", [False, False, True, True]),
        ("modules", "masks", ["none", "given", "given", "given"]),
        ("modules", "fusion", ["hypergraph", "hypergraph", "none", "hypergraph"]),
        ("fusion", "fusion", ["concatenation", "none", "mlp", "self-attention", "hypergraph"]),
        ("sfm", "shared_strengths", [True, False, False, False, False]),
        ("sfm", "modulated_blocks", ["all", "early", "late", "all", "all"]),
        ("sfm", "per_head", [False, False, False, True, False]),
        ("perturbation", "perturbation", [0.0, 0.01, 0.05, 0.1, 0.3]),
        ("tokens", "num_tokens", [1, 2, 4, 8]),
        ("threshold", "threshold", [-1.0, 0.0, 0.5, 0.7, 0.9, 1.1]),
        ("text", "captions", ["off", "required", "required"]),
        ("text", "shuffled_captions", [False, True, False]),
        ("masks", "masks", ["given"] * 6),
        ("masks-trained", "masks", ["given", "eroded", "dilated", "shuffled", "empty", "ones"]),
    ],
)
def test_presets_set_what_their_labels_say(folder, tmp_path, preset, field, values):
    run, options = asked(folder, tmp_path, {"preset": preset}, num_tokens=4)
    rows = compare.preset_of(run, options)
    found = [value_of(compare.variant_run(run, options, row.variant, 0)[0], field) for row in rows.rows]
    assert found == values
    if rows.sweep:
        assert [float(row.label) for row in rows.rows] == values


def test_variants_of_equal_settings_share_a_run(folder, tmp_path):
    run, options = asked(folder, tmp_path, num_tokens=4)

    def folder_of(name: str, seed: int, **changes: Any) -> Path:
        return compare.variant_run(run.changed(changes), options, name, seed)[1].relative_to(tmp_path / "runs")

    names = ("full", "threshold-0.5", "tokens-4", "perturbation-0", "captions-on")
    assert {folder_of(name, 2) for name in names} == {Path("full/seed-2")}
    assert folder_of("threshold-0.7", 0, threshold=0.7) == Path("full/seed-0")
    assert folder_of("threshold-0.5", 0, threshold=0.7) == Path("threshold-0.5/seed-0")
    assert folder_of("captions-on@RGB", 0) == Path("full@RGB/seed-0")
    assert len({folder_of(name, 0, depth=2) for name in VARIANTS}) == len(VARIANTS) - 4
    with pytest.raises(ValueError, match=r"variants must be among baseline, .*received 'best'"):
        folder_of("best", 0)


@given(count=st.integers(1, 5))
def test_missing_has_every_subset_but_the_empty_one(count):
    rows = PRESETS["missing"].rows_of(tuple("ABCDE"[:count]))
    assert len({row.keep for row in rows}) == len(rows) == 2**count - 1
    assert rows[0].keep == tuple("ABCDE"[:count])
    assert {row.variant for row in rows} == {"full"}


def test_rows_can_be_chosen_and_names_are_checked(folder, tmp_path):
    def rows(**options: Any) -> list[str]:
        return [row.label for row in compare.preset_of(*asked(folder, tmp_path, options)).rows]

    assert rows(preset="tokens", rows=("8", "1")) == ["1", "8"]
    with pytest.raises(ValueError, match=r"rows of tokens must be among \['1', .*\]; received \['3'\]"):
        rows(preset="tokens", rows=("1", "3"))
    with pytest.raises(ValueError, match=r"preset must be among modules, .*; received 'best'"):
        rows(preset="best")
    with pytest.raises(ValueError, match=r"columns must be among \['mAP', .*'alpha', .*; received 'beauty'"):
        column_of("beauty", COLUMNS)


def test_a_method_without_variants_has_one(folder, tmp_path):
    run, options = tiny(folder, "toy_method", masks="none"), compare.Options(tmp_path)
    assert [row.variant for row in compare.preset_of(run, options).rows] == ["default"]
    assert compare.variant_run(run, options, "default", 1)[1] == tmp_path / "runs/default/seed-1"


# Conditions at test time


MASKS = st.integers(0, 2**32 - 1).map(
    lambda seed: torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(seed)) < 0.3
)


@given(mask=MASKS, pixels=st.integers(0, 4))
def test_dilation_is_the_union_of_all_shifts(mask, pixels):
    expected = torch.zeros_like(mask)
    for image, row, column in mask.nonzero().tolist():
        expected[image, max(0, row - pixels) : row + pixels + 1, max(0, column - pixels) : column + pixels + 1] = True
    assert torch.equal(dilate(mask, pixels), expected)


@given(mask=MASKS, pixels=st.integers(0, 4))
def test_erosion_and_dilation_enclose_the_mask(mask, pixels):
    smaller, larger = erode(mask, pixels), dilate(mask, pixels)
    assert (smaller <= mask).all()
    assert (mask <= larger).all()
    assert torch.equal(erode(~mask, pixels), ~larger)
    assert (dilate(smaller, pixels) <= mask).all()
    assert erode(torch.ones_like(mask), pixels).all()


def test_mask_modes_do_what_they_say(folder):
    items = read_split(folder, "test", ("RGB", "NI"))

    def area(mode: str) -> float:
        dataset = MultiModalDataset(items, (32, 32), masks=mode)
        return float(torch.stack([dataset[index].masks for index in range(4)]).float().mean())

    # The masks are 16 of 32 pixels wide, and 2 pixels a 16th of the image.
    assert area("given") == 0.25
    assert area("eroded") == (12 / 32) ** 2
    assert area("dilated") == (20 / 32) ** 2
    assert (area("empty"), area("ones")) == (0, 1)
    moved = MultiModalDataset(items, (32, 32), masks="empty", augment=True)
    assert not moved[0].masks.any()


def test_a_modality_that_is_left_out_takes_no_part(folder, trained, tmp_path):
    other = tmp_path / "set"
    shutil.copytree(folder, other)
    random = np.random.default_rng(1)
    for path in (other / "test" / "NI").iterdir():
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    train(tiny(other, epochs=2), tmp_path / "run")  # the same training split, hence the same weights
    scores = {}
    for keep in (("RGB",), ("NI",), ("RGB", "NI")):
        row = Row("", "full", keep=keep)
        runs = (trained, tmp_path / "run")
        scores[keep] = [score_under(run / "checkpoint.pt", row, MACHINE)["descriptors"] for run in runs]
    assert scores["RGB",][0] == scores["RGB",][1]
    assert scores["NI",][0] != scores["NI",][1]
    assert scores["RGB", "NI"][0] != scores["RGB", "NI"][1]
    assert scores["RGB", "NI"][0] == json.loads((trained / "metrics.json").read_text())["descriptors"]


def test_what_to_keep_must_be_there(folder):
    items = read_split(folder, "test", ("RGB", "NI"))
    kept = without(items, ("RGB", "NI"), ("NI",))
    assert [item.images for item in kept] == [(None, item.images[1]) for item in items]
    for keep in (("TI",), ()):
        with pytest.raises(ValueError, match=r"keep must name some of the modalities \('RGB', 'NI'\); received"):
            without(items, ("RGB", "NI"), keep)


def test_a_condition_is_measured_once_on_masks_of_its_own_and_again_when_its_file_is_broken(trained):
    def score(masks: str) -> dict[str, Any]:
        return score_under(trained / "checkpoint.pt", Row("", "full", masks=masks), MACHINE)

    first = score("ones")
    assert first["foreground"] == 1
    assert score("empty")["foreground"] == 0
    file = trained / "conditions" / "test-ones.json"
    made = file.stat().st_mtime_ns
    assert score("ones") == first
    assert file.stat().st_mtime_ns == made
    file.write_text(file.read_text()[:20])
    assert score("ones") == first


def test_shuffled_captions_are_those_of_others(folder):
    for of_both in zip(load_splits(tiny(folder)), load_splits(tiny(folder, shuffled_captions=True)), strict=True):
        names, captions = (
            [[getattr(item, field) for item in one.items] for one in of_both] for field in ("name", "captions")
        )
        assert names[0] == names[1]
        assert sorted(captions[0]) == sorted(captions[1])
        assert captions[0] != captions[1]


# Tables and figures


RESULTS = {
    "one": [
        {"headline": "U", "descriptors": {"U": {"mAP": 0.5}, "G": {"mAP": 0.25}}, "watch": {}},
        {"headline": "U", "descriptors": {"U": {"mAP": 0.7}, "G": {"mAP": 0.25}}, "watch": {}},
    ],
    "two": [
        {"headline": "G", "descriptors": {"G": {"mAP": 0.1}}, "watch": {"alpha/block_0": 0.5, "alpha/block_1": 0.7}},
        {"headline": "G", "descriptors": {"G": {"mAP": 0.3}}, "watch": {"alpha/block_0": 0.0, "alpha/block_1": 0.7}},
    ],
}


def columns(*names: str) -> dict[str, Column]:
    return {name: column_of(name, COLUMNS) for name in names}


def test_a_table_has_mean_and_deviation_and_leaves_out_what_is_not_there():
    table = as_table("variant", columns("mAP", "mAP by G", "alpha", "edge size"), RESULTS)
    assert table.replace("\xa0±\xa0", " ± ").splitlines() == [
        "| variant | by | mAP | mAP by G | alpha | edge size |",
        "|---|---|---|---|---|---|",
        "| one | U | 60.0 ± 14.1 | 25.0 | - | - |",
        "| two | G | 20.0 ± 14.1 | 20.0 ± 14.1 | 0.65 ± 0.07 | - |",
    ]
    assert spread([2.0]) == "2.0"


def test_a_long_command_is_wrapped_and_still_one_command():
    arguments = [f"--option-{number}" for number in range(12)] + ["a b"]
    block = as_command(arguments)
    assert all(len(line) <= 120 for line in block.splitlines())
    assert block.replace(" \\\n    ", " ").splitlines()[1] == (
        "python -m examples.compare " + " ".join(arguments[:-1]) + " 'a b'"
    )


@pytest.mark.usefixtures("pictures")
@pytest.mark.parametrize("sweep", [False, True])
def test_figures_are_written_with_their_labels(tmp_path, sweep):
    panels = (columns("mAP", "mAP by G", "edge size"), columns("alpha"))
    paths = draw(RESULTS, panels, tmp_path / "figure", title="Title", axis="variant", sweep=sweep)
    assert [path.name for path in paths] == ["figure.png", "figure.svg"]
    with Image.open(paths[0]) as image:
        assert min(image.size) > 300
    drawn = paths[1].read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("Title", "one", "two", "mAP by G", "alpha", "percent"))
    assert "<!-- edge size -->" not in drawn
    draw(RESULTS, panels, tmp_path / "figure", title="Title", axis="variant", sweep=sweep)
    assert paths[1].read_text() == drawn
    assert "<!-- 90 -->" not in drawn
    draw(RESULTS, panels, tmp_path / "figure", title="Title", axis="variant", sweep=sweep, top=100)
    assert "<!-- 100 -->" in paths[1].read_text()


@pytest.mark.usefixtures("pictures")
def test_a_scale_for_two_sets_holds_for_the_map_by_one_descriptor(tmp_path):
    (_, drawn) = draw(RESULTS, [columns("mAP by G")], tmp_path / "figure", title="", axis="", sweep=False, top=100)
    assert all(f"<!-- {text} -->" in drawn.read_text() for text in ("100", "percent"))


@pytest.mark.usefixtures("pictures")
def test_no_seed_hides_another(tmp_path):
    equal = {"one": [RESULTS["one"][0]] * 3}
    (_, drawn) = draw(equal, [columns("mAP")], tmp_path / "figure", title="", axis="", sweep=False)
    _, dots = drawn.read_text().split('<g id="PathCollection_1">')
    across = re.findall(r'<use xlink:href="#\w+" x="([\d.]+)"', dots.partition("</g>\n   </g>")[0])
    assert len(set(across)) == 3


def test_a_preset_writes_table_and_figure_and_publishes_them(folder, trained, tmp_path, monkeypatch, in_this_process):
    run, options = asked(folder, tmp_path / "out", {"preset": "missing", "seeds": (0,), "docs": "tiny"}, epochs=2)
    shutil.copytree(trained, tmp_path / "out" / "runs" / "full" / "seed-0")
    made = (tmp_path / "out/runs/full/seed-0/checkpoint.pt").stat().st_mtime_ns
    monkeypatch.setattr(compare, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(sys, "argv", ["compare", "stmi", "--preset", "missing"])
    text = compare.main(run, options)
    assert (tmp_path / "out/runs/full/seed-0/checkpoint.pt").stat().st_mtime_ns == made
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")] == [
        "| present at test time",
        "| RGB + NI",
        "| RGB",
        "| NI",
    ]
    assert "```bash\npython -m examples.compare stmi --preset missing\n```" in text
    assert (tmp_path / "docs/tables/results-tiny-missing.md").read_text() == text
    (published,) = (tmp_path / "docs/assets/results").iterdir()
    assert published.name == "tiny-missing.svg"
    assert published.read_bytes() == (tmp_path / "out/missing/figure.svg").read_bytes()
    content = json.loads((tmp_path / "out/missing/table.json").read_text())
    assert content["command"] == ["stmi", "--preset", "missing"]
    assert [run["keep"] for run in content["runs"]] == [["RGB", "NI"], ["RGB"], ["NI"]]


def test_a_run_that_fails_is_named_and_the_others_go_on(folder, tmp_path, capsys, in_this_process):
    run, options = asked(folder, tmp_path, {"variants": ("baseline@UV", "baseline"), "seeds": (0,)})
    with pytest.raises(ValueError, match=r"1 of 2 runs failed: baseline@UV/seed-0; .*same command makes only these"):
        compare.main(run, options)
    assert "baseline@UV/seed-0 failed: " in capsys.readouterr().err
    assert (tmp_path / "runs/baseline/seed-0/metrics.json").exists()
    assert not (tmp_path / "table.md").exists()


def test_a_fault_of_the_program_keeps_its_traceback(folder, tmp_path, capsys, monkeypatch, in_this_process):
    def fault(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("examples.train.train", fault)
    with pytest.raises(ValueError, match="1 of 1 runs failed: full/seed-3"):
        compare.main(*asked(folder, tmp_path, {"variants": ("full",), "seeds": (3,)}))
    printed = capsys.readouterr().err
    assert "full/seed-3 failed: Traceback" in printed
    assert "RuntimeError: out of memory" in printed


def test_compare_writes_a_table_and_repeats_nothing_that_is_whole(folder, tmp_path, in_this_process):
    run, options = asked(folder, tmp_path, {"variants": ("baseline", "full@RGB"), "seeds": (0, 1)}, captions="off")
    text = compare.main(run, options)
    rows = [line.split("|")[1:3] for line in text.splitlines() if line.startswith("| ")]
    assert [(name.strip(), by.strip()) for name, by in rows] == [
        ("variant", "by"),
        ("baseline", "G"),
        ("full@RGB", "U"),
    ]
    assert "±" in text
    made = tmp_path / "runs" / "full@RGB" / "seed-1"
    before = (made / "metrics.json").stat().st_mtime_ns
    assert compare.main(run, options) == text
    assert (made / "metrics.json").stat().st_mtime_ns == before
    # A result that does not parse is none: the run is finished again, from its checkpoint.
    whole = json.loads((made / "metrics.json").read_text())
    (made / "metrics.json").write_text("{")
    assert compare.main(run, options) == text
    assert json.loads((made / "metrics.json").read_text())["descriptors"] == whole["descriptors"]
    with pytest.raises(ValueError, match=r"made with other settings; choose another --out(.|\n)*epochs: 1 -> 2"):
        compare.main(run.changed({"epochs": 2}), options)


@pytest.mark.slow
def test_runs_in_processes_of_their_own(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "get_context", {"spawn": CONTEXT}.__getitem__)  # which imports torch once
    run, options = asked(folder, tmp_path, {"variants": ("baseline", "full"), "seeds": (0,), "jobs": 2})
    assert "| full | U |" in compare.main(run, options)
