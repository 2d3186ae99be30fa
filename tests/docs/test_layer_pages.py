"""Pages of the layers: complete, with pictures of what the library computes."""

import math
import re
from importlib import import_module
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

import stmi_layers
import stmi_layers.backbones
from docs.figures.layers import attention, drawing, foreground, hypergraph, losses, metrics, reallocation
from docs.figures.layers.__main__ import ASSETS, NAMES, draw

DOCS = Path(__file__).parents[2] / "docs"
PAGES = {page.stem: page.read_text() for page in sorted((DOCS / "layers").glob("*.md"))}
ALL_PAGES = sorted(DOCS.rglob("*.md"))
SECTIONS = ["API", "Idea", "Formula", "Differences", "Cost", "Pitfalls", "Tests"]


def public_names(package: object) -> list[tuple[str, str]]:
    """Every public name of the package, with the module that documents it."""
    documented = stmi_layers.backbones.__name__ if package is stmi_layers.backbones else None
    return [
        (name, documented or value.__module__)
        for name, value in vars(package).items()
        if not name.startswith("_") and getattr(value, "__module__", "").startswith("stmi_layers")
    ]


@pytest.mark.parametrize("package", [stmi_layers, stmi_layers.backbones], ids=lambda package: package.__name__)
def test_every_public_name_is_in_the_api_of_one_page(package):
    blocks = [block for page in PAGES.values() for block in re.findall(r"^::: (.*(?:\n {4}.*)*)", page, re.MULTILINE)]
    names = public_names(package)
    assert names
    for name, module in names:
        if module.rpartition(".")[2].startswith("_"):  # not of a layer: documented by itself, in a guide
            assert any(f"\n::: stmi_layers.{name}\n" in page.read_text() for page in ALL_PAGES), name
            continue
        holding = [block for block in blocks if block.split("\n")[0] == module]
        assert len(holding) == 1, f"{module} of {name} is in the API of {len(holding)} pages"
        assert "members" not in holding[0] or re.search(rf"\b{name}\b", holding[0]), f"{name} is left out of {module}"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_its_sections_in_order(page: str):
    assert re.findall(r"^## (.+)", PAGES[page], re.MULTILINE) == SECTIONS


def test_what_a_function_returns_is_not_taken_for_a_type():
    """The reference reads `words: more words` below Returns as a type and its meaning."""
    code = "\n".join(file.read_text() for file in sorted(Path(stmi_layers.__file__).parent.rglob("[!_]*.py")))
    returned = re.findall(r"^ *Returns:\n +(.*)", code, re.MULTILINE)
    assert returned
    assert [line for line in returned if re.match(r"[^`.;]*: ", line)] == []


@pytest.mark.parametrize("page", PAGES)
def test_a_page_leads_with_its_use(page: str):
    text = PAGES[page]
    purpose, idea = text[: text.index("```python")], text.partition("## Idea")[2].partition("## ")[0]
    assert purpose.count("\n") <= 10
    assert text.index("```python") < text.index("## API") < text.index("![")
    assert f"](../assets/layers/{page}.svg)" in idea


@pytest.mark.parametrize("page", PAGES)
def test_code_of_a_page_fits_its_column(page: str):
    blocks = re.findall(r"^```\w+\n(.*?)^```", PAGES[page], re.MULTILINE | re.DOTALL)
    assert [line for block in blocks for line in block.splitlines() if len(line) > 88] == []


@pytest.mark.parametrize("page", PAGES)
def test_the_tests_a_page_names_exist(page: str):
    named = re.findall(r"`(tests/[\w/]+\.py)`", PAGES[page])
    assert named
    assert [path for path in named if not (DOCS.parent / path).is_file()] == []


@pytest.mark.parametrize("page", ALL_PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_every_image_has_an_alternative(page: Path):
    text = page.read_text()
    assert re.findall(r"!\[\s*\]\(", text) == []
    assert [tag for tag in re.findall(r"<img[^>]*>", text) if not re.search(r'alt="[^"]+"', tag)] == []


def test_every_page_has_its_picture():
    assert sorted(NAMES) == sorted([*PAGES, "pipeline"])


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_what_the_library_gives(name: str):
    drawn = (ASSETS / f"{name}.svg").read_text()
    assert drawn == draw(name), f"{name}.svg is out of date: run python -m docs.figures.layers"
    root = ElementTree.fromstring(drawn)
    assert [child.text.strip() != "" for child in root if child.tag.endswith(("title", "desc"))] == [True, True]
    sizes = [float(element.get("font-size")) for element in root.iter() if element.get("font-size")]
    assert min(sizes) >= 12, "a picture is as wide as a phone, and this text is too small on it"


@pytest.mark.parametrize("name", NAMES)
def test_pictures_have_a_dark_palette(name: str):
    drawn = (ASSETS / f"{name}.svg").read_text()
    colours = set(re.findall(r'(?:fill|stroke)="(#\w+)"', drawn))
    assert colours
    assert colours <= drawing.DARK.keys(), "a colour without its dark counterpart glares on a dark page"


def test_home_counts_the_families_of_the_table():
    rows = re.findall(r"^\| (?!Model |---).+", (DOCS / "tables/backbones.md").read_text(), re.MULTILINE)
    assert f" {len(rows)} families" in (DOCS / "index.md").read_text()


def test_attention_shows_the_equations():
    of_foreground, of_background = attention.rows()
    # Row maximum 3 and minimum -1, both strengths one half.
    assert of_foreground.tolist() == [2.5, 2.0, 1.5, 1.0, 0.0, -1.0]
    assert of_background.tolist() == [0.5, 0.0, -0.5, 1.0, 0.0, -1.0]


def test_foreground_shows_shares_that_decide_the_tokens():
    for threshold in (0.25, 0.4, 0.5, 0.8):
        assert foreground.tokens(threshold)[1:].tolist() == (foreground.shares().flatten() >= threshold).tolist()


def test_reallocation_reads_every_patch():
    weights = reallocation.attention()
    torch.testing.assert_close(weights.sum(dim=1), torch.ones(4))
    assert weights.min() > 0
    for part in range(3):
        assert max(range(4), key=lambda other: reallocation.share(weights[part], other)) == part


def test_hypergraph_shows_both_useless_ends():
    assert hypergraph.statistics(1.01) == (1, 0)
    assert hypergraph.statistics(-1.0) == (9, 1)
    assert hypergraph.statistics(hypergraph.THRESHOLD)[1] == pytest.approx(8 / 9)


def test_losses_of_the_anchors_average_to_that_of_the_batch():
    terms = [losses.soft_margin(anchor) for anchor in range(len(losses.LABELS))]
    whole = stmi_layers.batch_hard_triplet(losses.FEATURES, losses.LABELS).item()
    assert math.fsum(terms) / len(terms) == pytest.approx(whole, abs=1e-6)


def test_metrics_are_worked_out_right():
    assert metrics.hits() == [1, 3, 5]
    assert metrics.scores().mAP == pytest.approx((1 / 1 + 2 / 3 + 3 / 5) / 3)
    assert metrics.scores().mINP == pytest.approx(3 / 5)


def test_modules_of_pictures_are_all_drawn():
    modules = {path.stem for path in (DOCS / "figures" / "layers").glob("*.py")} - {"__init__", "__main__", "drawing"}
    assert modules == set(NAMES)
    assert all(callable(import_module(f"docs.figures.layers.{name}").draw) for name in NAMES)
