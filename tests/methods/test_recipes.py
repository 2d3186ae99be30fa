"""Recipes and the settings they came with: their values, how the command line departs from them, what is refused."""

import os
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import tyro
from PIL import Image

from examples import compare
from examples.stmi import evaluate, train
from examples.stmi.recipes import RECIPES, deviations, recipe_arguments, with_recipe
from examples.stmi.recipes.__main__ import Arguments as TableArguments
from examples.stmi.recipes.__main__ import main as write_tables
from examples.stmi.report import headline
from examples.stmi.run import start
from examples.stmi.settings import Settings
from sets import tiny, write_set
from stmi_layers.training.dataset import collate

pytest.importorskip("timm")

ROOT = Path(__file__).parents[2]
PLACES = ("--data", "some", "--out", "other")
# Batches of the paper: identities times images of each.
BATCHES = {"rgbnt201": (9, 8), "rgbnt100": (8, 16), "msvr310": (8, 8)}


def read_line(arguments_type: type, *line: str):
    """What a command makes of a command line."""
    return tyro.cli(arguments_type, args=line, default=recipe_arguments(arguments_type, line))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.mark.parametrize("name", RECIPES)
def test_every_value_is_one_that_the_command_line_takes_and_reads_back(name: str):
    def spell(setting: str, value: object) -> list[str]:
        flag = setting.replace("_", "-")
        if isinstance(value, bool):
            return [f"--{flag}" if value else f"--no-{flag}"]
        return [f"--{flag}", *(map(str, value) if isinstance(value, tuple) else [str(value)])]

    words = [word for setting, entry in RECIPES[name].items() for word in spell(setting, entry.value)]
    typed = tyro.cli(train.Arguments, args=[*PLACES, *words])
    assert replace(typed, recipe=name) == read_line(train.Arguments, *PLACES, "--recipe", name)
    for setting, entry in RECIPES[name].items():
        assert type(entry.value) is type(getattr(typed, setting)), setting
        assert entry.why, setting


def test_batches_sizes_and_epochs_are_those_of_the_benchmarks():
    for name, batch in BATCHES.items():
        settings = with_recipe(Settings(Path(), Path()), name)
        assert (settings.identities_per_batch, settings.images_per_identity) == batch
        assert settings.image_size == ((256, 128) if name == "rgbnt201" else (128, 256))
    research = with_recipe(Settings(Path(), Path()), "rgbnt100-research-code")
    assert (research.descriptor, research.identity_weight, research.similarity) == ("G+T", 0.25, "euclidean")
    assert (research.image_size, research.epochs) == ((128, 256), 20)


def test_the_tables_of_the_documentation_are_those_the_command_writes(tmp_path: Path, capsys):
    write_tables(TableArguments(tmp_path / "recipes.md"))
    assert capsys.readouterr().out == f"{tmp_path / 'recipes.md'}\n"
    written = (tmp_path / "recipes.md").read_text()
    assert written == (ROOT / "docs/tables/recipes.md").read_text()
    assert "| `--identities-per-batch` | `9` | `8` | `8` | paper |" in written
    assert "| `--optimizer` | `adam` | paper | implementation details |" in written
    for setting in RECIPES["rgbnt201"]:
        assert f"| `--{setting.replace('_', '-')}` |" in written


def test_a_flag_overrides_its_recipe_wherever_it_stands_and_the_run_says_so(monkeypatch, capsys):
    for line in (("--epochs", "3", "--recipe", "msvr310"), ("--recipe=msvr310", "--epochs=3")):
        arguments = read_line(train.Arguments, *PLACES, *line, "--no-projected", "--workers", "0", "--device", "cpu")
        assert (arguments.epochs, arguments.projected, arguments.images_per_identity) == (3, False, 8)
        trained: list[Settings] = []
        monkeypatch.setattr(train, "train", lambda settings, resume, trained=trained: trained.append(settings))
        train.main(arguments)
        assert trained[0].epochs == 3
        assert capsys.readouterr().out.splitlines() == [
            "otherwise than recipe msvr310: projected is False, not True",
            "otherwise than recipe msvr310: epochs is 3, not 20",
        ]
    assert deviations(read_line(train.Arguments, *PLACES, "--recipe", "msvr310")) == []
    assert deviations(read_line(train.Arguments, *PLACES, "--epochs", "3")) == []


@pytest.mark.parametrize("module", ["stmi.train", "stmi.compare", "several_processes"])
def test_every_command_with_these_settings_takes_the_recipe(module: str, monkeypatch):
    defaults: list[Settings] = []
    monkeypatch.setattr("examples.cli.run", lambda *_, default: defaults.append(default))
    monkeypatch.setattr(sys, "argv", [module, *PLACES, "--recipe", "msvr310"])
    monkeypatch.delitem(sys.modules, f"examples.{module}", raising=False)
    runpy.run_module(f"examples.{module}", run_name="__main__", alter_sys=True)
    assert (defaults[0].recipe, defaults[0].image_size) == ("msvr310", (128, 256))


def test_without_recipe_the_settings_are_those_of_the_trainer():
    arguments = read_line(train.Arguments, *PLACES)
    assert {**vars(arguments), "resume": None} == {**vars(Settings(Path("some"), Path("other"))), "resume": None}


@pytest.mark.parametrize("module", ["train", "compare"])
def test_a_recipe_that_does_not_exist_is_refused_with_those_that_do(module: str, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [module, *PLACES, "--recipe", "rgbnt200"])
    monkeypatch.delitem(sys.modules, f"examples.stmi.{module}", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"examples.stmi.{module}", run_name="__main__", alter_sys=True)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "rgbnt200" in said
    assert all(name in said for name in RECIPES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], r"ViT-B-16-quickgelu needs pretrained weights: give their file by --weights, or .*--random-weights"),
        (["--weights", "{}/none.pt"], r"--weights must be a file; .*none\.pt is none"),
    ],
)
def test_a_recipe_needs_weights_and_says_so_in_a_line(options: list[str], message: str, folder, tmp_path, monkeypatch):
    line = ["train", "--recipe", "rgbnt201", "--data", str(folder), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", [*line, *(option.format(tmp_path) for option in options)])
    monkeypatch.delitem(sys.modules, "examples.stmi.train", raising=False)
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        runpy.run_module("examples.stmi.train", run_name="__main__", alter_sys=True)
    assert not (tmp_path / "out").exists()


def test_a_comparison_stands_on_a_recipe_and_its_variants_on_top(tmp_path: Path):
    arguments = read_line(compare.Arguments, *PLACES, "--recipe", "rgbnt201", "--seeds", "4", "--epochs", "2")
    assert (arguments.seeds, arguments.epochs, arguments.backbone) == ((4,), 2, "open_clip")
    pure = with_recipe(Settings(Path("some"), Path("other")), "rgbnt201")
    for name, features in (("baseline", ["G", "T"]), ("full", ["G", "U", "T"])):
        settings = compare.variant_settings(arguments, name, 4)
        assert settings.recipe == "rgbnt201"
        changed = {line.split(":")[0] for line in pure.differences(settings)}
        assert changed == {"epochs", "seed"} | ({"masks", "reallocation"} if name == "baseline" else set())
        assert headline(settings, features) == ("G" if name == "baseline" else "U")


def test_a_missing_library_of_the_recipe_ends_the_command_in_a_line(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "open_clip", None)
    line = ["train", "--recipe", "rgbnt201", "--random-weights", "--modalities", "RGB", "NI", "--workers", "0"]
    monkeypatch.setattr(sys, "argv", [*line, "--data", str(folder), "--out", str(tmp_path / "out")])
    monkeypatch.delitem(sys.modules, "examples.stmi.train", raising=False)
    said = r"^error: open_clip cannot be imported; install it by: pip install 'stmi-layers\[clip\]'$"
    with pytest.raises(SystemExit, match=said):
        runpy.run_module("examples.stmi.train", run_name="__main__", alter_sys=True)


def test_without_the_libraries_of_the_examples_a_command_ends_in_a_line(tmp_path):
    # Python imports this module before anything else; what is None in sys.modules cannot be imported.
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['tyro'] = sys.modules['tqdm'] = None")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "examples.stmi.train", "--help"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert (finished.returncode, finished.stdout) == (1, "")
    said = "error: tyro, tqdm cannot be imported; install what the examples need: pip install -e '.[examples]'\n"
    assert finished.stderr == said


def test_without_them_an_import_is_an_error(monkeypatch):
    monkeypatch.setitem(sys.modules, "tyro", None)
    with pytest.raises(ImportError, match=r"^tyro cannot be imported; install what the examples need"):
        runpy.run_path(str(ROOT / "examples/stmi/__init__.py"))


def test_joined_descriptors_are_concatenated_then_normalised(folder, tmp_path):
    settings = tiny(folder, tmp_path)
    dataset = evaluate.test_dataset(settings)
    run = start(settings, train.train_dataset(settings))
    options = {"device": torch.device("cpu"), "quiet": True}
    found = evaluate.describe(run.model, dataset, run.tokenizer, descriptor="G+T", **options)
    assert list(found) == ["G", "U", "T", "all", "G+T"]
    features = evaluate.features_of(
        run.model.eval(), collate([dataset[index] for index in range(len(dataset))]), run.tokenizer, options["device"]
    )
    assert features.T is not None
    parts = [feature / feature.norm(dim=1, keepdim=True) for feature in (features.G, features.T)]
    torch.testing.assert_close(found["G+T"], torch.cat(parts, dim=1).detach() / 2**0.5)
    assert "G+T" not in evaluate.describe(run.model, dataset, run.tokenizer, descriptor="U", **options)
    assert headline(replace(settings, descriptor="G+T"), list(found)) == "G+T"
    with pytest.raises(ValueError, match=r"descriptor must be one the model has, \['G', 'U'\] or .* received 'G\+T'"):
        train.train(replace(settings, captions="off", descriptor="G+T"), quiet=True)


def test_embeddings_of_cameras_move_the_output_and_an_unseen_camera_has_their_mean(folder, tmp_path):
    settings = tiny(
        folder,
        tmp_path,
        backbone="timm",
        architecture="test_vit",
        random_weights=True,
        captions="off",
        image_size=(32, 64),
        camera_embedding=(2, 1),
    )
    run = start(settings, train.train_dataset(settings))
    (name, table), *others = [(name, value) for name, value in run.model.named_parameters() if "camera" in name]
    assert not others
    assert len(table) == 2
    assert any(value is table for value in run.optimizer.param_groups[0]["params"]), name
    with torch.no_grad():
        table.copy_(torch.randn(table.shape))
    images = torch.randn(1, 2, 3, 32, 64)

    def features(camera: int | None) -> torch.Tensor:
        cameras = None if camera is None else torch.tensor([camera])
        return run.model.eval()(images, cameras=cameras).G.detach()

    first, second, unseen = features(1), features(2), features(7)
    assert not torch.allclose(first, second, atol=1e-3)
    torch.testing.assert_close(features(None), unseen)
    with torch.no_grad():
        table.copy_(table.flip(0))
    torch.testing.assert_close(features(1), second)
    with torch.no_grad():
        table.copy_(table.mean(dim=0).expand_as(table))
    torch.testing.assert_close(features(1), unseen)


def test_embeddings_of_cameras_are_those_of_the_training_split_on_a_pretrained_backbone(folder, tmp_path):
    settings = tiny(folder, tmp_path, camera_embedding=(1, 3))
    with pytest.raises(ValueError, match=r"cameras of the training split, 1 2; received 1 3 \(--camera-embedding\)"):
        train.train(settings, quiet=True)
    with pytest.raises(ValueError, match=r"camera_embedding needs --backbone open_clip or timm, .* --backbone vit"):
        train.train(replace(settings, camera_embedding=(1, 2)), quiet=True)


def test_adam_adds_the_decay_to_the_gradient_and_adamw_takes_it_off_the_weights(folder, tmp_path):
    settings = tiny(folder, tmp_path)
    assert type(start(settings, train.train_dataset(settings)).optimizer) is torch.optim.AdamW
    run = start(replace(settings, optimizer="adam", weight_decay=0.5), train.train_dataset(settings))
    assert type(run.optimizer) is torch.optim.Adam
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.5, 0.5, 0.0]
    group = run.optimizer.param_groups[0]
    weight = max(group["params"], key=torch.numel)
    before, group["lr"] = weight.detach().clone(), 1e-3
    for parameter in group["params"]:
        parameter.grad = torch.zeros_like(parameter)
    run.optimizer.step()
    # The gradient is all decay, and the first step of Adam is its sign.
    moved = before.abs() > 1e-3
    torch.testing.assert_close((before - weight.detach())[moved], 1e-3 * before.sign()[moved], rtol=1e-3, atol=0)


@pytest.mark.parametrize(("workers", "cache", "kept"), [(0, True, True), (0, False, False), (2, True, False)])
def test_images_are_kept_in_memory_where_one_process_loads_them(workers, cache, kept, folder, tmp_path, monkeypatch):
    opened: list[Path] = []
    really = Image.open
    settings = tiny(folder, tmp_path, captions="off", workers=workers, cache=cache)
    dataset = train.train_dataset(settings)
    monkeypatch.setattr(Image, "open", lambda path, *rest: opened.append(path) or really(path, *rest))
    dataset[0]
    once = len(opened)
    assert once > 0
    dataset[0]
    assert len(opened) == (once if kept else 2 * once)
