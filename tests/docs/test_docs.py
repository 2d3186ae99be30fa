"""README and docs agree with the repository. Their Python blocks run as separate tests."""

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import stmi_layers
from examples.methods import METHODS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
QUICKSTART = (ROOT / "examples/quickstart.py").read_text()
FINDINGS = sorted((ROOT / "findings").glob("*.sh"))
CONTENTS = {
    str(page.relative_to(ROOT)): page.read_text()
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
}
FIRST_PAGES = ("docs/start.md", "docs/choose.md", "docs/examples.md")
GUIDES = [name for name in CONTENTS if name.startswith(("docs/guides/", "docs/layers/")) or name in FIRST_PAGES]
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
    methods = "|".join([*METHODS, r"examples\.token_study"])
    for module, rest in re.findall(rf"-m ((?:examples|benchmarks)\.[\w.]+(?: (?:{methods})\b)?)([^`\n#]*)", text):
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


def blocks(text: str, language: str = r"\w+") -> Iterator[str]:
    return (match[2] for match in re.finditer(rf"^( *)```{language}\n(.*?)^\1```", text, re.MULTILINE | re.DOTALL))


@pytest.mark.parametrize("page", CONTENTS)
def test_code_fits_its_pane(page: str):
    """Of a laptop: a pane is about 90 columns wide. What a command prints is wrapped by the page itself."""
    code = [
        line
        for language in ("python", "py", "bash")
        for block in blocks(CONTENTS[page], language)
        for line in block.splitlines()
    ]
    assert [line for line in code if len(line) > 88] == []


@pytest.mark.parametrize("page", GUIDES)
def test_a_page_says_what_it_needs_and_keeps_to_it(page: str):
    text = CONTENTS[page]
    needs = re.match(r"# .+\n\n\*\*Needs:\*\* (the package|a clone)\b", text)
    assert needs, "the first paragraph must say: **Needs:** the package ..., or **Needs:** a clone ..."
    if needs[1] == "the package":
        code = "\n".join(blocks(text))
        assert (
            re.findall(r".*(?:from examples|import examples|-m examples|from tests|-m tests|docs\.figures).*", code)
            == []
        )


@pytest.mark.parametrize("page", [name for name in CONTENTS if name.startswith("docs/layers/")])
def test_pages_of_layers_need_the_package_alone(page: str):
    assert re.findall(r".*(?:from|import) examples.*", "\n".join(blocks(CONTENTS[page], "python"))) == []


@pytest.mark.parametrize("page", CONTENTS)
def test_nothing_is_installed_by_a_name_that_no_index_has(page: str):
    assert re.findall(r"pip install [^`\n]*[ '\"]stmi[-_]layers\b(?!-\d)", CONTENTS[page]) == []


def test_pages_name_no_folder_of_the_machine_that_made_them():
    pages = sorted((ROOT / "docs").rglob("*.md"))
    assert [str(page) for page in pages if re.search(r"(?<![\w.])/(?:tmp|work|home|root)/", page.read_text())] == []


def navigation(entries: list | None = None) -> Iterator[tuple[str, str]]:
    if entries is None:
        text = (ROOT / "mkdocs.yml").read_text()
        entries = yaml.safe_load(text[text.index("\nnav:") : text.index("\n# The scripts that draw")])["nav"]
    for entry in entries or ():
        ((name, value),) = entry.items()
        yield from navigation(value) if isinstance(value, list) else [(name, value)]


def test_a_page_has_one_name():
    named = {name: CONTENTS[f"docs/{page}"] for name, page in navigation()}
    titles = {name: re.search(r"^(?:# |title: )(.+)", text, re.MULTILINE) for name, text in named.items()}
    assert {name: title[1] for name, title in titles.items() if title and title[1] != name} == {"Home": "stmi-layers"}


def test_every_page_is_in_the_navigation():
    pages = {name.removeprefix("docs/") for name in CONTENTS if name.startswith("docs/") and "/tables/" not in name}
    assert pages == {page for _, page in navigation()}


def test_every_finding_is_on_its_page():
    assert FINDINGS
    assert [path.name for path in FINDINGS if f"`{path.name}`" not in CONTENTS["docs/findings.md"]] == []
    assert set(re.findall(r"`([\w-]+\.sh)`", CONTENTS["docs/findings.md"])) == {path.name for path in FINDINGS}
