"""Three rings of the repository: imports point one way, and each ring imports only what it needs."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from stmi_layers import training

ROOT = Path(__file__).parents[1]
METHODS = sorted(path.parent.name for path in (ROOT / "examples").glob("*/model.py"))
METHOD = "|".join(METHODS)

# The first pattern that fits a module says what it may import of this project; its own package it always may.
RULES = {
    r"stmi_layers\._(typing|acceptance|checks|precision)": r"stmi_layers\._(typing|acceptance|checks|precision)",
    r"stmi_layers\.training(\..*)?": r"stmi_layers(\..*)?",
    r"stmi_layers\.backbones(\..*)?": r"stmi_layers(?!\.training)(\..*)?",
    r"stmi_layers(\..*)?": r"stmi_layers(?!\.training|\.backbones)(\..*)?",
    r"examples\.towers(\..*)?": r"stmi_layers(\..*)?|examples\.optional",
    rf"examples\.({METHOD})\.figures(\..*)?": r"stmi_layers(\..*)?|examples\.(towers|figures)(\..*)?|examples\.restore",
    # A command of one method.
    rf"examples\.({METHOD})\.tokens": r"stmi_layers(\..*)?|examples\.(towers(\..*)?|cli|restore|train)",
    # A study of one method changes that method.
    r"examples\.token_study(\..*)?": r"stmi_layers(\..*)?|examples\.((stmi|towers)(\..*)?|preset)",
    rf"examples\.({METHOD})(\..*)?": r"stmi_layers(\..*)?|examples\.towers(\..*)?|examples\.(optional|preset|recipe)",
    r"examples\.prepare(\..*)?": r"stmi_layers(\..*)?|examples(\.prepare(\..*)?|\.cli|\.optional|\.ranges)?",
    # Commands find a method by its name, when it is asked for.
    r"examples(\..*)?": rf"stmi_layers(\..*)?|examples(?!\.({METHOD})\b)(\..*)?",
}


def modules() -> dict[str, Path]:
    """All modules of the library and the examples, by name."""
    files = [*(ROOT / "src" / "stmi_layers").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    names = [path.relative_to(ROOT).as_posix().removeprefix("src/") for path in files]
    dotted = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in names]
    return dict(zip(dotted, files, strict=True))


MODULES = modules()


def imported(path: Path) -> Iterator[str]:
    """Modules of this project that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            inner = [f"{module}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else module for name in inner]
        yield from (name for name in names if name.split(".")[0] in ("stmi_layers", "examples"))


def broken(name: str, target: str) -> bool:
    """Return True where an import goes against the direction."""
    pattern = next(pattern for pattern in RULES if re.fullmatch(pattern, name))
    package = ".".join(name.split(".")[:2])
    return not re.fullmatch(RULES[pattern], target) and not (target + ".").startswith(package + ".")


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_one_way(name: str):
    assert [target for target in imported(MODULES[name]) if broken(name, target)] == []


def test_the_rules_see_what_breaks_them():
    assert METHODS
    assert broken("stmi_layers.training.loop", f"examples.{METHODS[0]}.model")
    assert broken("stmi_layers.training.loop", "examples.towers.vit")
    assert broken("stmi_layers.attention", "stmi_layers.training.loop")
    assert broken("stmi_layers.attention", "stmi_layers.backbones")
    assert broken("stmi_layers._typing", "stmi_layers.attention")
    assert broken("examples.towers.vit", f"examples.{METHODS[0]}.model")
    assert broken(f"examples.{METHODS[0]}.model", "examples.train")
    assert broken("examples.train", f"examples.{METHODS[0]}.model")
    assert broken("examples.prepare.inspect", "examples.train")
    assert not broken("examples.train", "examples.towers.tower")
    assert not broken(f"examples.{METHODS[0]}.model", f"examples.{METHODS[0]}.settings")
    assert not broken("stmi_layers.attention", "stmi_layers._checks")
    assert {"stmi_layers", "stmi_layers.training.loop", "examples.train"} <= MODULES.keys()


def test_training_knows_no_model():
    """The names of STMI's parts do not occur in it, and neither do flags of a command line."""
    for path in (ROOT / "src" / "stmi_layers" / "training").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(r"hypergraph|STMI|incidence", text), path
        assert not re.findall(r"\(--[a-z]", text), path


def loaded(program: str) -> set[str]:
    code = f"import sys\n{program}\nprint(*sorted(name.partition('.')[0] for name in sys.modules))"
    return set(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split())


def test_the_layers_do_not_load_training_nor_what_it_needs():
    there = loaded("import stmi_layers, stmi_layers.backbones\nassert 'stmi_layers.training' not in sys.modules")
    assert not there & {"PIL", "torchvision", "matplotlib", "tyro"}


def test_training_needs_no_more_than_its_extra():
    there = loaded("import stmi_layers.training")
    assert {"PIL", "tqdm", "numpy"} <= there
    assert not there & {"matplotlib", "tyro", "tensorboard", "scipy", "sklearn"}
    # The towers' libraries import torchvision, and torchvision torch._dynamo: more than a second for every process.
    assert not there & {"torchvision", "open_clip", "timm", "transformers"}


def test_training_shows_names_that_exist_in_order():
    assert sorted(training.__all__) == list(training.__all__)
    assert all(getattr(training, name).__doc__ for name in training.__all__)
