"""Page of matches in Chromium: no external requests, use by keyboard and on a phone, and filters."""

import shutil
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from examples.search.matches import Match
from examples.search.page import edge, write_page
from examples.search.pictures import pictures
from stmi_layers.training import Item

sync_api = pytest.importorskip("playwright.sync_api")
NAMES = ("chromium", "chromium-browser", "google-chrome")
VIOLATIONS = """async () => (await axe.run()).violations.flatMap(
    (rule) => rule.nodes.map((node) => `${rule.id} at ${node.target}: ${node.failureSummary}`))"""
MODALITIES = ("RGB", "TI")


def item(number: int, camera: int, identity: int | None) -> Item:
    return Item(f"<b>{number}</b> & a_rather_long_name_of_a_file", identity, (None,) * 2, (None,) * 2, camera=camera)


def draw(one: Item) -> Any:
    shade = 40 * (one.camera or 0)
    image, mask = Image.new("RGB", (32, 64), (shade, 90, 160)), np.zeros((64, 32), bool)
    mask[16:48, 8:24] = True
    return [image, None if one.camera == 3 else image], [mask, None]


def matches() -> list[list[Match]]:
    found = [Match(row, item(row, 1 + row % 3, row % 2), 0.9 - 0.1 * row, row % 2 == 0) for row in range(5)]
    return [found, [], [Match(7, item(7, 1, None), 0.5, None)]]


@pytest.fixture
def written(tmp_path: Path) -> Path:
    queries = [item(100, 1, 0), item(101, 2, 1), item(102, 3, None)]
    write_page(tmp_path / "m.html", queries, matches(), MODALITIES, draw, note="3 queries <i>")
    return tmp_path / "m.html"


def test_names_are_escaped_and_nothing_is_loaded(written: Path):
    text = written.read_text()
    assert "<b>100" not in text
    assert "&lt;b&gt;100&lt;/b&gt; &amp; a_rather" in text
    assert "3 queries &lt;i&gt;" in text
    assert "http" not in text.replace("http-equiv", "")
    assert "default-src 'none'" in text
    assert text.count('<b class="verdict">right</b>') == 3
    assert text.count('<b class="verdict">wrong</b>') == 2
    assert text.count("Not in the gallery.") == 1


def test_an_outline_is_the_foreground_beside_background():
    mask = np.zeros((5, 5), bool)
    mask[1:4, 1:4] = True
    outline = edge(mask)
    assert outline.sum() == 8
    assert not outline[2, 2]
    assert not edge(np.ones((4, 4), bool)).any()


def test_masks_are_outlined_where_the_model_was_given_them(tmp_path: Path):
    mask = np.zeros((16, 16), np.uint8)
    mask[4:12, 4:12] = 255
    Image.fromarray(mask).save(tmp_path / "m.png")
    Image.new("RGB", (16, 16), (0, 90, 160)).save(tmp_path / "i.png")
    shown = Item("x", None, (tmp_path / "i.png", None), (tmp_path / "m.png", None))
    for policy in ("given", "eroded", "blank+given"):
        images, (outlined, missing) = pictures({}, MODALITIES, policy)(shown)
        assert (images[1], missing) == (None, None)
        np.testing.assert_array_equal(outlined, mask > 0)
    assert pictures({}, MODALITIES, "classical")(shown)[1][0] is not None
    for policy in ("none", "ones", "sam3"):
        assert pictures({}, MODALITIES, policy)(shown)[1] == [None, None]


@pytest.fixture
def page(written: Path) -> Iterator[Any]:
    """The page at the width of a desk; requests, exceptions and messages fail the test."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("the page is looked at in a Chromium, and there is none")
    complaints: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        one = browser.new_page(viewport={"width": 1280, "height": 900})
        address = written.as_uri()
        one.on("pageerror", lambda error: complaints.append(str(error)))
        one.on("console", lambda message: complaints.append(message.text))
        one.on("request", lambda r: r.url == address or r.url.startswith("data:") or complaints.append(r.url))
        one.goto(address)
        yield one
        assert complaints == []
        browser.close()


@pytest.mark.slow
def test_filters_hide_matches_and_modalities(page: Any):
    cards, images = page.locator(".matches .card:visible"), page.locator("main img:visible")
    assert (cards.count(), images.count()) == (6, 16)  # items of camera 3 have one image
    page.get_by_label("Matches of").select_option("2")
    assert cards.count() == 2
    assert page.get_by_role("status").text_content() == "2 of 6 matches shown"
    page.get_by_label("TI").uncheck()
    assert images.count() == 5
    page.get_by_label("Matches of").select_option("")
    assert (cards.count(), images.count()) == (6, 9)


@pytest.mark.slow
def test_the_keyboard_reaches_everything(page: Any):
    focused = "document.activeElement.textContent"
    page.keyboard.press("j")
    assert page.evaluate(focused).startswith("Query <b>100")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.ariaLabel").startswith("Enlarge match 2: <b>1")
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog")
    assert dialog.is_visible()
    assert "similarity 0.800" in dialog.text_content()
    page.keyboard.press("j")  # not behind an open dialog
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    page.keyboard.press("j")
    assert page.evaluate(focused).startswith("Query <b>101")
    page.keyboard.press("k")
    assert page.evaluate(focused).startswith("Query <b>100")


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_is_accessible(page: Any, scheme: str):
    page.emulate_media(color_scheme=scheme)
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text())
    assert page.evaluate(VIOLATIONS) == []
    page.set_viewport_size({"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator(".matches button").first.click()
    assert page.get_by_role("dialog").is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
