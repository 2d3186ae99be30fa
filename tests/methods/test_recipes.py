"""Recipes: their values, flags that differ from a recipe, refused combinations, and the help text."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from examples import cli, compare, train
from examples.methods import load_method
from examples.recipes import Arguments as TableArguments
from examples.recipes import main as write_tables
from examples.run import Run, default_run, deviations, run_differences, values_of
from examples.stmi.model import headline
from examples.stmi.recipes import RECIPES
from examples.towers.tower import Tower, build_tower, tower_tokens, trunk_of
from sets import tiny, write_set
from stmi_layers.training import Data, Facts, Machine, MultiModalDataset, collate, facts_of

pytest.importorskip("timm")

ROOT = Path(__file__).parents[2]
PLACES = ("--data", "some", "--out", "other")
# Batches of the paper: identities times images of each.
BATCHES = {"rgbnt201": (9, 8), "rgbnt100": (8, 16), "msvr310": (8, 8)}


def read_line(*line: str, own: type = train.Options, method: str = "stmi") -> tuple[Run, Any]:
    """What a command makes of a command line."""
    return cli.parse_run([method, *line], own, "python -m examples.train", "")


def recipe(name: str | None) -> Run:
    return default_run(load_method("stmi"), Data(Path("some")), name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_is_one_that_the_command_line_takes_and_reads_back(name: str):
    def spell(setting: str, value: object) -> list[str]:
        flag = cli.flag(setting)
        if isinstance(value, bool):
            return [flag if value else flag.replace("--", "--no-", 1)]
        return [flag, *(map(str, value) if isinstance(value, tuple) else [str(value)])]

    words = [word for setting, entry in RECIPES[name].items() for word in spell(setting, entry.value)]
    typed, _ = read_line(*PLACES, *words)
    chosen, _ = read_line(*PLACES, "--recipe", name)
    assert chosen == recipe(name)
    assert typed.records() == chosen.records()
    for setting, entry in RECIPES[name].items():
        assert entry.why, setting


def test_batches_sizes_and_epochs_are_those_of_the_benchmarks():
    for name, batch in BATCHES.items():
        run = recipe(name)
        assert (run.schedule.identities_per_batch, run.schedule.images_per_identity) == batch
        assert run.data.image_size == ((256, 128) if name == "rgbnt201" else (128, 256))
        assert run.schedule.rates == {"backbone": 3.5e-6, "strengths": 1e-3}
    research = recipe("rgbnt100-research-code")
    assert (research.own.descriptor, research.schedule.identity_weight) == ("G+T", 0.25)
    assert (research.own.similarity, research.schedule.epochs) == ("euclidean", 20)


def test_the_tables_of_the_documentation_are_those_the_command_writes(tmp_path: Path, capsys):
    write_tables(TableArguments("stmi", tmp_path / "recipes.md"))
    assert capsys.readouterr().out == f"{tmp_path / 'recipes.md'}\n"
    written = (tmp_path / "recipes.md").read_text()
    assert written == (ROOT / "docs/tables/recipes.md").read_text()
    assert "| `--identities-per-batch` | `9` | `8` | `8` | paper |" in written
    assert "| `--optimizer` | `adam` | paper | implementation details |" in written
    for setting in RECIPES["rgbnt201"]:
        assert f"| `{cli.flag(setting)}` |" in written


def test_a_flag_overrides_its_recipe_wherever_it_stands_and_the_run_says_so(monkeypatch, capsys):
    for line in (("--epochs", "3", "--recipe", "msvr310"), ("--recipe=msvr310", "--epochs=3")):
        run, options = read_line(*PLACES, *line, "--no-projected", "--workers", "0", "--backbone-learning-rate", "1e-5")
        assert run.schedule.images_per_identity == 8
        trained: list[Run] = []
        monkeypatch.setattr(train, "train", lambda run, out, resume, trained=trained: trained.append(run))
        train.main(run, options)
        assert trained[0].schedule.epochs == 3
        assert capsys.readouterr().out.splitlines() == [
            "differs from recipe msvr310: epochs is 3, not 20",
            "differs from recipe msvr310: rates.backbone is 1e-05, not 3.5e-06",
            "differs from recipe msvr310: projected is False, not True",
        ]
    assert deviations(read_line(*PLACES, "--recipe", "msvr310")[0]) == []
    assert deviations(read_line(*PLACES, "--epochs", "3")[0]) == []


def test_without_recipe_the_settings_are_those_of_the_method():
    run, options = read_line(*PLACES)
    assert run == recipe(None)
    assert options == train.Options(Path("other"))
    assert run.schedule.rates == {"backbone": 2e-3, "strengths": 1e-2}
    assert run.schedule.no_decay == ("strengths",)


def test_paths_that_lead_to_one_place_are_no_difference(folder: Path, monkeypatch):
    monkeypatch.chdir(folder.parent)
    assert run_differences(tiny(folder), tiny(Path(folder.name))) == []
    assert run_differences(tiny(folder), tiny(folder.parent, dim=32)) == [
        f"root: {folder} -> {folder.parent}",
        "dim: 16 -> 32",
    ]
    with pytest.raises(ValueError, match=r"settings must be fields of data, .*; received 'colour'"):
        tiny(folder, colour=1)


def call(module: str, *line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `python -m examples.MODULE LINE` does, in this process."""
    monkeypatch.setattr(sys, "argv", [module, *line])
    monkeypatch.delitem(sys.modules, f"examples.{module}", raising=False)
    runpy.run_module(f"examples.{module}", run_name="__main__", alter_sys=True)


@pytest.mark.parametrize("module", ["train", "compare"])
def test_a_recipe_that_does_not_exist_is_refused_with_those_that_do(module: str, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        call(module, "stmi", *PLACES, "--recipe", "rgbnt200", monkeypatch=monkeypatch)
    assert ended.value.code == 2
    said = "".join(capsys.readouterr().err.split())
    assert "rgbnt200" in said
    assert all(f"'{name}'" in said for name in RECIPES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"ViT-B-16-quickgelu needs pretrained weights: give their file by --weights, or .*--random-weights"),
        (["--weights", "{}/none.pt"], r"no file at .*none\.pt \(--weights\)"),
    ],
)
def test_a_recipe_needs_weights_and_says_so_in_a_line(options: list[str], message: str, folder, tmp_path, monkeypatch):
    line = ["stmi", "--recipe", "rgbnt201", "--data", str(folder), "--out", str(tmp_path / "out"), "--workers", "0"]
    line += ["--modalities", "RGB", "NI", *(option.format(tmp_path) for option in options)]
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        call("train", *line, monkeypatch=monkeypatch)
    assert not (tmp_path / "out").exists()


def test_a_comparison_stands_on_a_recipe_and_its_variants_on_top():
    line = (*PLACES, "--recipe", "rgbnt201", "--seeds", "4", "--epochs", "2")
    run, options = read_line(*line, own=compare.Options)
    assert (options.seeds, run.schedule.epochs, run.tower.backbone) == ((4,), 2, "open_clip")
    for name, features in (("baseline", ["G", "T"]), ("full", ["G", "U", "T"])):
        asked, _ = compare.variant_run(run, options, name, 4)
        assert asked.recipe == "rgbnt201"
        changed = {line.split(":")[0] for line in run_differences(recipe("rgbnt201"), asked)}
        assert changed == {"epochs", "seed"} | ({"masks", "reallocation"} if name == "baseline" else set())
        assert headline(asked.own.descriptor, dict.fromkeys(features, 1)) == ("G" if name == "baseline" else "U")


def test_a_missing_library_of_the_recipe_ends_the_command_in_a_line(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    line = ["stmi", "--recipe", "rgbnt201", "--random-weights", "--modalities", "RGB", "NI", "--workers", "0"]
    said = r"^error: open_clip cannot be imported; from a clone: pip install '\.\[clip\]'$"
    with pytest.raises(SystemExit, match=said):
        call("train", *line, "--data", str(folder), "--out", str(tmp_path / "out"), monkeypatch=monkeypatch)


def test_without_the_libraries_of_the_examples_a_command_ends_in_a_line(tmp_path):
    # Python imports this module before anything else; what is None in sys.modules cannot be imported.
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['tyro'] = sys.modules['tqdm'] = None")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "examples.train", "--help"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (1, "")
    said = "error: tyro, tqdm cannot be imported; install what the examples need: pip install -e '.[examples]'\n"
    assert finished.stderr == said


def test_without_them_an_import_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(ImportError, match=r"^tyro cannot be imported; install what the examples need"):
        runpy.run_path(str(ROOT / "examples/cli.py"))


def test_values_of_a_recipe_are_fields_of_the_records():
    for values in map(values_of, RECIPES.values()):
        assert recipe(None).changed(values)


def pretrained(**options: Any) -> Any:
    tower = Tower(backbone="timm", architecture="test_vit", camera_embedding=True)
    return build_tower(tower, Facts(("RGB", "NI"), (32, 64), 5, **options))


def test_embeddings_of_cameras_move_the_output_and_an_unseen_camera_has_their_mean():
    backbone = pretrained(cameras=(1, 2)).eval()
    (name, table), *others = [(name, value) for name, value in backbone.named_parameters() if "camera" in name]
    assert not others
    assert len(table) == 2
    assert id(table) not in {id(parameter) for parameter in trunk_of(backbone).parameters()}, name
    with torch.no_grad():
        table.copy_(torch.randn(table.shape))
    images = torch.rand(1, 2, 3, 32, 64)

    def features(camera: int | None) -> torch.Tensor:
        return backbone(images, None, None if camera is None else torch.tensor([camera]))[1].detach()

    first, second, unseen = features(1), features(2), features(7)
    assert not torch.allclose(first, second, atol=1e-3)
    torch.testing.assert_close(features(None), unseen)
    with torch.no_grad():
        table.copy_(table.flip(0))
    torch.testing.assert_close(features(1), second)
    with torch.no_grad():
        table.copy_(table.mean(dim=0).expand_as(table))
    torch.testing.assert_close(features(1), unseen)


def test_the_viewpoint_stands_for_a_camera_where_a_set_numbers_none(folder: Path):
    backbone = pretrained(views=(3, 5)).eval()
    with torch.no_grad():
        backbone.tokens.camera_embedding.copy_(torch.randn(2, backbone.tokens.camera_embedding.shape[1]))
    dataset = MultiModalDataset(train.load_splits(tiny(folder))[0].items, (32, 64), masks="none")
    nowhere, views = torch.full((2,), -1), torch.tensor([5, 9])
    batch = collate([dataset[0], dataset[1]])._replace(cameras=nowhere, views=views)
    expected = backbone(batch.images, None, views)[1]
    assert torch.equal(tower_tokens(backbone, batch)[1], expected)


def test_embeddings_of_cameras_need_a_class_token_and_numbers(folder: Path):
    run = tiny(folder, camera_embedding=True)
    with pytest.raises(ValueError, match=r"camera_embedding needs --backbone open_clip or timm, .* --backbone vit"):
        run.build(facts_of(train.load_splits(run)[0], ("RGB", "NI")))
    with pytest.raises(ValueError, match="camera_embedding needs a set that numbers cameras or viewpoints"):
        pretrained()


def test_help_shows_what_a_method_reads_in_groups(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    shown = {}
    for method in ("stmi", "toy_method"):
        with pytest.raises(SystemExit):
            read_line("--help", method=method)
        shown[method] = capsys.readouterr().out
    for group in ("train", "data", "schedule", "machine", "tower", "stmi"):
        assert f" {group} options " in shown["stmi"], group
    assert "--backbone-learning-rate FLOAT" in shown["stmi"]
    assert max(map(len, shown["stmi"].splitlines())) == 80
    assert '("empty"), the given masks eroded' in shown["stmi"]  # wrapped without the line ends of the source
    assert " tower options " not in shown["toy_method"]
    assert "--agreement, --no-agreement" in shown["toy_method"]
    assert "--fusion" not in shown["toy_method"]
    with pytest.raises(SystemExit):
        call("train", "--help", monkeypatch=monkeypatch)
    assert "METHOD is one of stmi" in capsys.readouterr().out


def test_the_machine_is_no_part_of_a_run(folder: Path):
    run = tiny(folder)
    assert run_differences(run, run.changed({"workers": 3, "device": "cuda", "checkpointing": True})) == []
    assert run.changed({"workers": 3}).machine != Machine()
