"""Comparisons: what the presets set, the conditions at test time, tables, figures, and runs that fail."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from examples import compare
from examples.comparison_figure import draw
from examples.comparison_table import as_command, as_table, spread
from examples.robustness import score_under, without
from examples.stmi.build import build_model
from examples.stmi.evaluate import test_dataset as dataset_for_test
from examples.stmi.evaluate import train_dataset
from examples.stmi.train import train
from examples.stmi.variants import PRESETS, VARIANTS, Row, rows_of
from examples.towers.vit import VisionTransformer
from sets import tiny, write_set
from stmi_layers.training.checkpoint import load_weights
from stmi_layers.training.dataset import MultiModalDataset, read_split
from stmi_layers.training.transforms import dilate, erode


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """Settings of a finished run of the full model."""
    settings = tiny(folder, tmp_path_factory.mktemp("trained") / "run", epochs=2)
    train(settings, quiet=True)
    return settings


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in a thread, for a new process would spend seconds on imports."""
    monkeypatch.setattr(compare, "ProcessPoolExecutor", lambda jobs, mp_context: ThreadPoolExecutor(1))


def asked(folder: Path, out: Path, **changes) -> compare.Arguments:
    options = {name: changes.pop(name) for name in list(changes) if name not in vars(tiny(folder, out))}
    return compare.Arguments(**vars(tiny(folder, out, **{"epochs": 1, **changes})), **options)


# Presets


def test_every_row_of_every_preset_is_a_run(folder, tmp_path):
    for name in PRESETS:
        rows = compare.preset_of(asked(folder, tmp_path, preset=name, depth=2)).rows
        assert len({row.label for row in rows}) == len(rows) >= 3, name
        for row in rows:
            compare.variant_settings(asked(folder, tmp_path, depth=2), row.variant, 1)


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
    arguments = asked(folder, tmp_path, preset=preset, num_tokens=4)
    preset_rows = compare.preset_of(arguments)
    found = [getattr(compare.variant_settings(arguments, row.variant, 0), field) for row in preset_rows.rows]
    assert found == values
    if preset_rows.sweep:
        assert [float(row.label) for row in preset_rows.rows] == values


def test_variants_of_equal_settings_share_a_run(folder, tmp_path):
    arguments = asked(folder, tmp_path, num_tokens=4, captions="required")
    names = ("full", "threshold-0.5", "tokens-4", "perturbation-0", "captions-on")
    assert {compare.variant_settings(arguments, name, 2).out for name in names} == {tmp_path / "runs/full/seed-2"}
    other = replace(arguments, threshold=0.7)
    assert compare.variant_settings(other, "threshold-0.7", 0).out == tmp_path / "runs/full/seed-0"
    assert compare.variant_settings(other, "threshold-0.5", 0).out == tmp_path / "runs/threshold-0.5/seed-0"
    assert compare.variant_settings(arguments, "captions-on@RGB", 0).out == tmp_path / "runs/full@RGB/seed-0"
    outs = [compare.variant_settings(replace(arguments, depth=2), name, 0).out for name in VARIANTS]
    assert len(set(outs)) == len(VARIANTS) - 4


@given(count=st.integers(1, 5))
def test_missing_has_every_subset_but_the_empty_one(count):
    rows = rows_of("missing", tuple("ABCDE"[:count]))
    assert len({row.keep for row in rows}) == len(rows) == 2**count - 1
    assert rows[0].keep == tuple("ABCDE"[:count])
    assert {row.variant for row in rows} == {"full"}


def test_rows_can_be_chosen_and_names_are_checked(folder, tmp_path):
    chosen = compare.preset_of(asked(folder, tmp_path, preset="tokens", rows=("8", "1"))).rows
    assert [row.label for row in chosen] == ["1", "8"]
    with pytest.raises(ValueError, match=r"rows of tokens must be among \['1', .*\]; received \['3'\]"):
        compare.preset_of(asked(folder, tmp_path, preset="tokens", rows=("1", "3")))
    with pytest.raises(ValueError, match=r"preset must be among modules, .*; received 'best'"):
        compare.preset_of(asked(folder, tmp_path, preset="best"))


# Where SFM acts


def transformer(**options) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer((8, 8), patch_size=4, dim=8, depth=3, num_heads=2, stem_width=4, **options).eval()


def strengths_of(model: torch.nn.Module) -> list[torch.nn.Parameter]:
    return [value for name, value in model.named_parameters(remove_duplicate=False) if name.endswith(("alpha", "beta"))]


@pytest.mark.parametrize(("where", "plain"), [("early", (1, 2)), ("late", (0,)), ("all", ())])
def test_the_attention_of_other_blocks_is_plain(where, plain):
    model, reference = transformer(modulated_blocks=where), transformer()
    images, masks = torch.rand(2, 1, 3, 8, 8), torch.rand(2, 1, 8, 8) < 0.5
    for index in plain:
        attention = reference.blocks[index].attention
        reference.blocks[index].attention.forward = partial(_without_mask, attention.forward)
    for found, expected in zip(model(images, masks), reference(images, masks), strict=True):
        torch.testing.assert_close(found, expected)
    model(images, masks)[0].square().sum().backward()
    learned = [index for index, block in enumerate(model.blocks) if block.attention.alpha.grad is not None]
    assert learned == [index for index in range(3) if index not in plain]


def _without_mask(forward, tokens, foreground):
    return forward(tokens, None)


def test_all_blocks_can_share_one_pair_of_strengths():
    model = transformer(shared_strengths=True)
    assert len({id(strength) for strength in strengths_of(model)}) == 2
    assert len({id(strength) for strength in strengths_of(transformer())}) == 6
    other = transformer(shared_strengths=True, strength=0.1)
    load_weights(other, model.state_dict(), "model")
    assert [strength.item() for strength in strengths_of(other)] == [0.5] * 6
    some = transformer(shared_strengths=True, modulated_blocks="late")
    assert [strength.item() for strength in strengths_of(some)] == [0.0, 0.0, 0.5, 0.5, 0.5, 0.5]
    assert len({id(strength) for strength in strengths_of(some)}) == 4


def test_strengths_that_nothing_could_learn_are_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="modulated_blocks='early' chooses none of the 1 blocks"):
        build_model(tiny(folder, tmp_path, modulated_blocks="early"), None)
    with pytest.raises(ValueError, match="per_head and shared_strengths exclude each other; received both"):
        tiny(folder, tmp_path, per_head=True, shared_strengths=True)


def test_a_pretrained_backbone_takes_the_same_settings(folder, tmp_path):
    timm = pytest.importorskip("timm")
    depth = len(timm.create_model("test_vit").blocks)

    def pairs(**changes) -> tuple[int, int]:
        settings = tiny(folder, tmp_path, backbone="timm", architecture="test_vit", image_size=(32, 16), **changes)
        found = strengths_of(build_model(settings, None).backbone)
        return len(found) // 2, len({id(strength) for strength in found}) // 2

    assert pairs() == (depth, depth)
    assert pairs(shared_strengths=True) == (depth, 1)
    assert pairs(modulated_blocks="early") == (depth // 2, depth // 2)


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
        dataset = MultiModalDataset(items, (32, 32), mask_mode=mode)
        return float(torch.stack([dataset[index].masks for index in range(4)]).float().mean())

    # The masks are 16 of 32 pixels wide, and 2 pixels a 16th of the image.
    assert area("given") == 0.25
    assert area("eroded") == (12 / 32) ** 2
    assert area("dilated") == (20 / 32) ** 2
    assert (area("empty"), area("ones")) == (0, 1)
    moved = MultiModalDataset(items, (32, 32), mask_mode="empty", augment=True)
    assert not moved[0].masks.any()
    with pytest.raises(ValueError, match="blank needs masks to blank by; received mask_mode='empty'"):
        MultiModalDataset(items, mask_mode="empty", blank=True)


def test_a_modality_that_is_left_out_takes_no_part(folder, trained, tmp_path):
    other = tmp_path / "set"
    shutil.copytree(folder, other)
    random = np.random.default_rng(1)
    for path in (other / "test" / "NI").iterdir():
        Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    changed = replace(trained, data=other, out=tmp_path / "run")
    shutil.copytree(trained.out, changed.out)
    scores = {}
    for keep in (("RGB",), ("NI",), ("RGB", "NI")):
        row = Row("", "full", keep=keep)
        scores[keep] = score_under(trained, row)["descriptors"], score_under(changed, row)["descriptors"]
    assert scores["RGB",][0] == scores["RGB",][1]
    assert scores["NI",][0] != scores["NI",][1]
    assert scores["RGB", "NI"][0] != scores["RGB", "NI"][1]
    finished = json.loads((trained.out / "metrics.json").read_text())
    assert scores["RGB", "NI"][0] == finished["descriptors"]


def test_what_to_keep_must_be_there(folder):
    items = read_split(folder, "test", ("RGB", "NI"))
    kept = without(items, ("RGB", "NI"), ("NI",))
    assert [item.images for item in kept] == [(None, item.images[1]) for item in items]
    for keep in (("TI",), ()):
        with pytest.raises(ValueError, match=r"keep must name some of the modalities \('RGB', 'NI'\); received"):
            without(items, ("RGB", "NI"), keep)


def test_a_condition_is_measured_once_on_masks_of_its_own(trained):
    first = score_under(trained, Row("", "full", masks="ones"))
    assert first["foreground"] == 1
    assert score_under(trained, Row("", "full", masks="empty"))["foreground"] == 0
    file = trained.out / "conditions" / "test-ones.json"
    made = file.stat().st_mtime_ns
    assert score_under(trained, Row("", "full", masks="ones")) == first
    assert file.stat().st_mtime_ns == made


def test_shuffled_captions_are_those_of_others(folder, tmp_path):
    settings = tiny(folder, tmp_path)
    for make in (train_dataset, dataset_for_test):
        given_items, shuffled = make(settings).items, make(replace(settings, shuffled_captions=True)).items
        assert [item.name for item in shuffled] == [item.name for item in given_items]
        captions = [[item.caption for item in items] for items in (given_items, shuffled)]
        assert sorted(captions[0]) == sorted(captions[1])
        assert captions[0] != captions[1]


# Tables and figures


RESULTS = {
    "one": [
        {"headline": "U", "descriptors": {"U": {"mAP": 0.5}, "G": {"mAP": 0.25}}, "hypergraph": None},
        {"headline": "U", "descriptors": {"U": {"mAP": 0.7}, "G": {"mAP": 0.25}}, "hypergraph": None},
    ],
    "two": [
        {"headline": "G", "descriptors": {"G": {"mAP": 0.1}}, "strengths": {"alpha": [0.5, 0.7]}},
        {"headline": "G", "descriptors": {"G": {"mAP": 0.3}}, "strengths": {"alpha": [0.0, 0.7]}},
    ],
}


def test_a_table_has_mean_and_deviation_and_leaves_out_what_is_not_there():
    assert as_table("variant", ("mAP", "mAP by G", "alpha", "edge size"), RESULTS).splitlines() == [
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


@pytest.mark.parametrize("sweep", [False, True])
def test_figures_are_written_with_their_labels(tmp_path, sweep):
    panels = (("mAP", "mAP by G", "edge size"), ("alpha",))
    paths = draw(RESULTS, panels, tmp_path / "figure", title="Title", axis="variant", sweep=sweep)
    assert [path.name for path in paths] == ["figure.png", "figure.svg"]
    with Image.open(paths[0]) as image:
        assert min(image.size) > 300
    drawn = paths[1].read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("Title", "one", "two", "mAP by G", "alpha", "percent"))
    assert "<!-- edge size -->" not in drawn
    draw(RESULTS, panels, tmp_path / "figure", title="Title", axis="variant", sweep=sweep)
    assert paths[1].read_text() == drawn


def test_a_preset_writes_table_and_figure_and_publishes_them(folder, trained, tmp_path, monkeypatch, in_this_process):
    arguments = asked(folder, tmp_path / "out", preset="missing", seeds=(0,), docs="tiny", epochs=2)
    shutil.copytree(trained.out, tmp_path / "out" / "runs" / "full" / "seed-0")
    made = (tmp_path / "out/runs/full/seed-0/checkpoint.pt").stat().st_mtime_ns
    monkeypatch.setattr(compare, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(sys, "argv", ["compare", "--preset", "missing"])
    text = compare.main(arguments)
    assert (tmp_path / "out/runs/full/seed-0/checkpoint.pt").stat().st_mtime_ns == made
    assert [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| ")] == [
        "| there at test time",
        "| RGB + NI",
        "| RGB",
        "| NI",
    ]
    assert "```bash\npython -m examples.compare --preset missing\n```" in text
    assert (tmp_path / "docs/tables/results-tiny-missing.md").read_text() == text
    for suffix in ("png", "svg"):
        published = tmp_path / "docs/assets/results" / f"tiny-missing.{suffix}"
        assert published.read_bytes() == (tmp_path / "out/missing" / f"figure.{suffix}").read_bytes()
    content = json.loads((tmp_path / "out/missing/table.json").read_text())
    assert content["command"] == ["--preset", "missing"]
    assert [run["keep"] for run in content["runs"]] == [["RGB", "NI"], ["RGB"], ["NI"]]


def test_a_run_that_fails_is_named_and_the_others_go_on(folder, tmp_path, capsys, in_this_process):
    arguments = asked(folder, tmp_path, variants=("baseline@UV", "baseline"), seeds=(0,))
    with pytest.raises(ValueError, match=r"1 of 2 runs failed: baseline@UV/seed-0; .*the same command makes these"):
        compare.main(arguments)
    assert "baseline@UV/seed-0 failed: " in capsys.readouterr().err
    assert (tmp_path / "runs/baseline/seed-0/metrics.json").exists()
    assert not (tmp_path / "table.md").exists()


def test_a_fault_of_the_program_keeps_its_traceback(folder, tmp_path, capsys, monkeypatch, in_this_process):
    def fault(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("examples.stmi.train.train", fault)
    with pytest.raises(ValueError, match="1 of 1 runs failed: full/seed-3"):
        compare.main(asked(folder, tmp_path, variants=("full",), seeds=(3,)))
    printed = capsys.readouterr().err
    assert "full/seed-3 failed: Traceback" in printed
    assert "RuntimeError: out of memory" in printed
