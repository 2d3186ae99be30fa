"""Search of the site: public names are found."""

from types import ModuleType

from playwright.sync_api import Page, expect

import stmi_layers
from stmi_layers import backbones


def public_names(module: ModuleType) -> set[str]:
    values = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    return {name for name, value in values.items() if not isinstance(value, ModuleType)}


def test_search_finds_every_public_name(reader: Page, address: str) -> None:
    reader.context.set_extra_http_headers({})  # the index whole
    reader.goto(address)
    field = reader.get_by_role("textbox", name="Search")
    missed = []
    names = sorted(public_names(stmi_layers) | public_names(backbones))
    assert {"modulated_attention", "modulate"} <= set(names)
    field.fill("modulate")
    expect(reader.locator(".md-search-result__link").first).to_be_attached()  # the index is built
    for name in names:
        field.fill(name)
        field.press("End")  # the theme listens to keys
        found = reader.locator(f'.md-search-result__link[href*="#stmi_layers."][href$=".{name}"]')
        try:
            expect(found.first).to_be_attached(timeout=30_000)
        except AssertionError:
            missed.append(name)
    assert missed == []
