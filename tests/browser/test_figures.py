"""Interactive figures: values equal to the library's, and every control usable by pointer and by keyboard."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Locator, Page, expect
from torch import Tensor

from docs.figures.stills import attention_weights, decoded
from stmi_layers import incidence_statistics, similarity_incidence

DATA = Path(__file__).parents[2] / "docs" / "assets" / "try"
SFM = json.loads((DATA / "sfm.json").read_text())
CHI = json.loads((DATA / "chi.json").read_text())
GIVEN = [torch.tensor([token == "1" for token in image["foreground"]]) for image in SFM["images"]]
TOKENS = len(GIVEN[0])


@pytest.fixture
def sfm(reader: Page, settle: Callable[[Page], object], address: str) -> Locator:
    reader.goto(f"{address}try/sfm/")
    settle(reader)  # nothing moves from here on
    reader.locator("summary").click()
    return reader.locator("div#try-sfm")


@pytest.fixture
def chi(reader: Page, settle: Callable[[Page], object], address: str) -> Locator:
    reader.goto(f"{address}try/chi/")
    settle(reader)
    return reader.locator("div#try-chi")


def panel(figure: Locator, name: str) -> Locator:
    return figure.locator("figure").filter(has=figure.page.get_by_text(name, exact=True))


def slide(figure: Locator, name: str, value: float) -> None:
    figure.locator(f"input[name={name}]").fill(str(value))


def shown(figure: Locator) -> Tensor:
    """Plain and modulated weights of the query, as the page prints them."""
    cells = figure.locator("details tbody td").all_text_contents()
    return torch.tensor([[float(cells[i + 1]), float(cells[i + 2])] for i in range(0, len(cells), 3)]).T


def expected(image: int, foreground: Tensor, query: int, head: int | None, alpha: float, beta: float) -> Tensor:
    pair = [attention_weights(SFM, image, foreground, strengths)[:, query] for strengths in ((0.0, 0.0), (alpha, beta))]
    return torch.stack([weights.mean(0) if head is None else weights[head] for weights in pair])


@pytest.mark.parametrize(
    ("image", "head", "alpha", "beta", "query", "painted"),
    [
        (0, None, 0.0, 0.0, 36, []),
        (0, None, 0.37, 0.3, 36, []),
        (0, 0, 1.0, 1.0, 1, [0, 1, 2]),
        (1, 3, 0.8, 0.25, 0, [63]),
        (2, 2, 0.15, 0.95, 64, [35, 36, 63]),
        (1, None, 0.5, 0.5, 20, list(range(TOKENS - 1))),
    ],
)
def test_weights_are_those_of_modulated_attention(
    sfm: Locator, image: int, head: int | None, alpha: float, beta: float, query: int, painted: list[int]
) -> None:
    sfm.get_by_label(SFM["images"][image]["modality"], exact=True).check()
    sfm.get_by_role("button", name="Mask as given").click()
    sfm.get_by_label("mean" if head is None else str(head + 1), exact=True).check()
    slide(sfm, "alpha", alpha)
    slide(sfm, "beta", beta)
    mask, plain = panel(sfm, "Mask"), panel(sfm, "Plain attention")
    foreground = GIVEN[image].clone()
    for patch in painted:
        foreground[patch + 1] ^= True
    if len(painted) == TOKENS - 1:
        sfm.get_by_role("button", name="All foreground").click()
        foreground[:] = True
    else:
        for patch in painted:
            mask.locator(f"[data-patch='{patch}']").click()
    target = plain.locator(".try-token") if query == 0 else plain.locator(f"[data-patch='{query - 1}']")
    target.click()
    torch.testing.assert_close(
        shown(sfm), expected(image, foreground, query, head, alpha, beta), atol=1e-4, rtol=0, check_dtype=False
    )
    change = shown(sfm)[1, 1:] - shown(sfm)[0, 1:]
    label = str(panel(sfm, "Modulated minus plain").get_by_role("img").get_attribute("aria-label"))
    if change.abs().max() < 0.0004:
        assert label.endswith("Both maps are equal.")
    else:
        signed = [float(number) for number in re.findall(r"([+-][\d.]+) points", label.replace("\u2212", "-"))]
        assert signed == pytest.approx([100 * change.max().item(), 100 * change.min().item()], abs=0.06)
    on_foreground = shown(sfm)[:, 1:][:, foreground[1:]].sum(1) * 100
    note = sfm.locator(".try-note").inner_text()
    assert all(f"{share:.1f} %" in note for share in on_foreground.tolist())


def test_mask_and_query_by_keyboard(sfm: Locator) -> None:
    keyboard, patches = sfm.page.keyboard, panel(sfm, "Mask").locator("[data-patch]")
    patches.first.focus()
    for key in ("ArrowRight", "ArrowDown", "End", "ArrowLeft", "Space"):
        keyboard.press(key)
    assert patches.nth(14).get_attribute("aria-pressed") == str(not GIVEN[0][15]).lower()
    outline = patches.nth(14).evaluate("node => getComputedStyle(node).outlineStyle")
    assert outline != "none"
    keyboard.press("Tab")  # the grid is one stop; the query comes next
    for key in ("ArrowUp", "Home"):
        keyboard.press(key)
    expect(sfm.locator(".try-note")).to_contain_text("row 4, column 1")
    keyboard.press("Tab")
    keyboard.press("Enter")
    expect(sfm.locator(".try-note")).to_contain_text("class token")
    sfm.locator("input[name=alpha]").focus()
    keyboard.press("End")
    expect(sfm.locator("input[name=alpha] + output")).to_have_text("1.00")


def test_mask_is_drawn_by_dragging(sfm: Locator) -> None:
    sfm.get_by_role("button", name="All background").click()
    patches = panel(sfm, "Mask").locator("[data-patch]")
    boxes = [patches.nth(patch).bounding_box() for patch in (8, 11)]
    (x, y), (end, _) = [(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2) for box in boxes if box]
    sfm.page.mouse.move(x, y)
    sfm.page.mouse.down()
    sfm.page.mouse.move(end, y, steps=12)
    sfm.page.mouse.up()
    sfm.page.mouse.move(x, y + 100)
    pressed = patches.evaluate_all("nodes => nodes.flatMap((node, k) => node.ariaPressed === 'true' ? [k] : [])")
    assert pressed == [8, 9, 10, 11]


def statistics(sample: int, threshold: float, present: list[bool]) -> tuple[list[float], str]:
    count, dim = CHI["tokens"], CHI["dim"]
    nodes = decoded(CHI["samples"][sample]["nodes"], 1, len(present) * count, dim)
    keep = torch.tensor([present]).repeat_interleave(count, dim=1)
    incidence = similarity_incidence(nodes, threshold, present=keep)
    numbers = [value.item() for value in incidence_statistics(incidence, len(present))]
    return numbers, f"{int(incidence.sum())} entries are true"


def printed(chi: Locator) -> list[float]:
    return [float(number) for number in chi.locator("dd").all_text_contents()]


@pytest.mark.parametrize("sample", range(len(CHI["samples"])))
def test_hypergraph_has_the_statistics_of_the_library(chi: Locator, sample: int) -> None:
    chi.get_by_label(str(sample + 1), exact=True).check()
    present = [True] * len(CHI["modalities"])
    for threshold in (-1.0, -0.1, 0.0, 0.35, 0.5, 0.72, 0.9, 1.0):
        slide(chi, "threshold", threshold)
        numbers, entries = statistics(sample, threshold, present)
        assert printed(chi) == pytest.approx(numbers, abs=0.006)
        assert entries in str(chi.locator(".try-matrix").get_attribute("aria-label"))
    slide(chi, "threshold", 0.35)
    for absent in range(len(present)):
        chi.get_by_label(CHI["modalities"][absent], exact=True).uncheck()
        present[absent] = False
        assert printed(chi) == pytest.approx(statistics(sample, 0.35, present)[0], abs=0.006)


def test_extremes_are_named(chi: Locator) -> None:
    for threshold, verdict in ((1.0, "The identity"), (-1.0, "Everything"), (0.5, "Between")):
        slide(chi, "threshold", threshold)
        expect(chi.locator(".try-verdict")).to_contain_text(verdict)


def test_hyperedge_of_a_node_by_pointer_and_keyboard(chi: Locator) -> None:
    nodes = chi.get_by_role("radio").and_(chi.locator(".try-node"))
    nodes.nth(6).hover()
    expect(chi.locator(".try-note")).to_contain_text(f"Hyperedge of {CHI['modalities'][1]} 2:")
    row, column = divmod(CHI["samples"][0]["patches"][6], CHI["grid"][1])
    expect(chi.locator(".try-note")).to_contain_text(f"STR read row {row + 1}, column {column + 1} of the ")
    picture, spot = chi.locator(".try-pictures img").nth(1).bounding_box(), chi.locator(".try-spot").bounding_box()
    assert picture
    assert spot
    side = picture["width"] / CHI["grid"][1]
    assert (spot["x"] - picture["x"]) / side == pytest.approx(column, abs=0.1)
    assert (spot["y"] - picture["y"]) / side == pytest.approx(row, abs=0.1)
    nodes.first.focus()
    chi.page.keyboard.press("ArrowLeft")
    expect(chi.locator(".try-note")).to_contain_text(f"Hyperedge of {CHI['modalities'][-1]} {CHI['tokens']}:")
    assert nodes.last.locator(".try-ring").evaluate("node => getComputedStyle(node).strokeDasharray") != "none"


@pytest.mark.parametrize("name", ["sfm", "chi"])
def test_still_picture_without_scripts(opened: Callable[..., Page], address: str, name: str) -> None:
    page = opened(java_script_enabled=False)
    page.goto(f"{address}try/{name}/")
    still = page.locator(f"img#try-{name}")
    assert still.is_visible()
    assert len(str(still.get_attribute("alt"))) > 40
