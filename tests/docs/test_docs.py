"""What README and docs show is what the repository holds. Their Python blocks run as tests of their own."""

import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import stmi_layers

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "examples/quickstart.py").read_text()
PAGES = [ROOT / "README.md", ROOT / "Makefile", *sorted((ROOT / "docs").rglob("*.md"))]


def run(*arguments: str) -> str:
    finished = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=ROOT)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def shown_options() -> dict[str, set[str]]:
    """Options by module, of every `python -m examples...` that a page or the Makefile shows."""
    text = "\n".join(page.read_text() for page in PAGES).replace("\\\n", " ")
    options: dict[str, set[str]] = {}
    # Commands for all methods name one: its options are those of the method.
    for module, rest in re.findall(r"-m ((?:examples|benchmarks)\.[\w.]+(?: stmi\b)?)([^`\n#]*)", text):
        options.setdefault(module, set()).update(re.findall(r"(?<!\S)--[\w-]+", rest))
    return options


def test_readme_shows_the_quickstart():
    code = QUICKSTART.split('"""\n\n', 1)[1]
    assert f"```python\n{code}```\n" in README


def test_quickstart_prints_the_shapes_of_its_comments():
    commented = dict(re.findall(r"^(\w+) = .*# (\([\d, ]+\))", QUICKSTART, re.MULTILINE))
    printed = dict(line.split(maxsplit=1) for line in run("examples/quickstart.py").splitlines())
    assert {name: printed[name] for name in ("foreground", "tokens", "semantic", "descriptor")} == {
        name: commented[name] for name in ("foreground", "tokens", "semantic", "descriptor")
    }
    assert printed["loss"] == "()"


@pytest.mark.parametrize("module", sorted(shown_options()))
def test_commands_shown_exist_with_the_options_shown(module: str, monkeypatch, capsys):
    name, *words = module.split()
    monkeypatch.setattr(sys, "argv", [name, *words, "--help"])
    # A second import under the name __main__ is what `python -m` does.
    for imported in (name, f"{name}.__main__"):
        monkeypatch.delitem(sys.modules, imported, raising=False)
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    assert shown_options()[module] <= set(re.findall(r"--[\w-]+", capsys.readouterr().out))


def test_readme_links_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://)([^)]+)\)", README)
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def public_names() -> list[str]:
    """Names of the package that belong to a layer: what a private module holds is documented in a guide."""
    modules = {name: getattr(value, "__module__", "") for name, value in vars(stmi_layers).items()}
    return [name for name, module in modules.items() if module.startswith("stmi_layers.") and "._" not in module]


def test_readme_names_every_layer():
    table = README.partition("start:layers")[2].partition("end:layers")[0]
    layers = [name for name in public_names() if isinstance(vars(stmi_layers)[name], type) and name != "ReIDMetrics"]
    assert layers
    assert [name for name in layers if f"`{name}`" not in table] == []


def test_docs_list_every_public_name():
    table = (ROOT / "docs/layers.md").read_text()
    assert [name for name in public_names() if f"`{name}`" not in table] == []


def test_version_is_the_same_everywhere():
    assert f"version: {stmi_layers.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"stmi_layers-{stmi_layers.__version__}-py3-none-any.whl" in README
    assert f"{{{stmi_layers.__version__}}}" in README
