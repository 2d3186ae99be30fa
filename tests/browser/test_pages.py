"""Pages in both palettes, at the width of a laptop and of a phone: nothing is cut off, unreadable or missing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

import pytest
from playwright.sync_api import Page

AXE = (files("axe_playwright_python") / "axe.min.js").read_text()
SCHEMES = {"light": "default", "dark": "slate"}
LAPTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
# The theme gives every block of code a landmark of the same name; the other rules hold without exception.
CONTRAST = {"runOnly": ["color-contrast", "link-in-text-block"], "resultTypes": ["violations"]}
OTHERS = {
    "rules": {name: {"enabled": False} for name in ("color-contrast", "link-in-text-block", "landmark-unique")},
    "resultTypes": ["violations"],
}
VIOLATIONS = """async (options, part = document) => (await axe.run(part, options)).violations.flatMap(
    (rule) => rule.nodes.map((node) => `${rule.id} at ${node.target}: ${node.failureSummary}`))"""
# Most of a page looks like a page before it. Parts whose every text stands in a class, in colours, on a ground and in a
# size that were looked at on an earlier page in the same palette need no second look.
CONTRAST_VIOLATIONS = f"""async (options) => {{
    const key = `seen in ${{document.body.dataset.mdColorScheme}}`;
    const seen = new Set(JSON.parse(sessionStorage.getItem(key) || "[]"));
    const remembered = (of) => {{
        const known = new Map();
        return (node) => known.get(node) ?? (known.set(node, of(node)), known.get(node));
    }};
    const ground = remembered((node) => {{
        const {{ backgroundColor, backgroundImage }} = getComputedStyle(node);
        const own = backgroundColor + backgroundImage;
        return own === "rgba(0, 0, 0, 0)none" && node.parentElement ? ground(node.parentElement) : own;
    }});
    const opacity = remembered((node) =>
        getComputedStyle(node).opacity * (node.parentElement ? opacity(node.parentElement) : 1));
    const look = remembered((node) => {{
        const {{ color, fontWeight, fontSize, textDecorationLine }} = getComputedStyle(node);
        const around = getComputedStyle(node.parentElement).color;
        return [node.localName, node.getAttribute("class"), color, ground(node), opacity(node), fontWeight, fontSize,
            textDecorationLine, around].join();
    }});
    const says = (node) => node.matches("input, select, textarea")
        || [...node.childNodes].some((one) => one.nodeType === 3 && one.data.trim());
    const looks = (part) => [part, ...part.querySelectorAll("*")]
        .filter((node) => says(node) && node.checkVisibility({{ visibilityProperty: true }})).map(look);
    const exclude = [];
    for (const part of document.querySelectorAll(
        "article > *, article :is(p, li, tr, pre, code, .katex), .md-header, .md-tabs, .md-footer, .md-sidebar"
    )) {{
        if (exclude.some((one) => one.contains(part))) continue;
        if (looks(part).every((one) => seen.has(one))) exclude.push(part);
    }}
    const violations = await ({VIOLATIONS})(options, {{ exclude }});
    sessionStorage.setItem(key, JSON.stringify([...new Set([...seen, ...looks(document.body)])]));
    return violations;
}}"""
UNRENDERED = """[...document.querySelectorAll(".arithmatex")]
    .filter((node) => !node.querySelector(".katex") || node.querySelector(".katex-error"))
    .map((node) => node.textContent.slice(0, 80))"""
RAW = r"""[...document.querySelectorAll("article :is(p, li, td, h1, h2, h3)")]
    .map((node) => [...node.childNodes].filter((one) => one.nodeType === 3).map((one) => one.data).join(""))
    .filter((text) => /\\[(\[]|\$\$/.test(text)).map((text) => text.slice(0, 80))"""
WIDE = """document.documentElement.scrollWidth <= innerWidth ? [] :
    [...document.querySelectorAll("article *")].filter((node) => node.getBoundingClientRect().right > innerWidth)
    .slice(0, 3).map((node) => node.outerHTML.slice(0, 100)).concat(`${document.documentElement.scrollWidth} pixels`)"""
BROKEN_IMAGES = """[...document.images].filter((image) => image.loading !== "lazy" && !image.naturalWidth)
    .map((image) => image.src)"""
# Code in open boxes, formulas, pictures, and tables that nothing around them lets scroll.
CUT_OFF = """(laptop) => {
    const shown = (selector) => [...document.querySelectorAll(`article ${selector}`)]
        .filter((node) => node.checkVisibility() && !node.closest("details:not([open])"));
    const beyond = (node) => node.scrollWidth > node.clientWidth + 1;
    const named = (kind, nodes) => nodes.map((node) =>
        `${kind}, ${node.scrollWidth} in ${node.clientWidth}: ${(node.textContent || node.src).trim().slice(0, 70)}`);
    const width = document.querySelector("article").clientWidth + 1;
    const wide = "p:has(> img:is(.wide, [src*='/assets/benchmarks/']))";
    const scrolls = (node) => node.closest(`.md-typeset__scrollwrap, .try-scroll, ${wide}`);
    const beyondPage = (node) => node.offsetWidth > width && !scrolls(node);
    return [
        ...(laptop ? named("code", shown("pre > code").filter(beyond)) : []),
        ...named("formula", shown(".katex-display").filter(beyond)),
        ...named("formula in lines", shown(".arithmatex.broken").filter((node) => {
            const lines = [...node.querySelectorAll(".katex-base")];
            return !lines.length || lines.some((line) => line.offsetWidth > node.clientWidth + 1);
        })),
        ...named("formula in a narrow line", shown(".arithmatex.broken > div").filter(
            (line) => line.offsetWidth < line.parentElement.clientWidth - 1)),
        ...named("picture", shown("img, article svg.figure").filter(beyondPage)),
        ...named("table", shown("table").filter(beyondPage)),
    ];
}"""
# Listeners of a new size run before the next frame is drawn, which may need other fonts.
RESIZED = """(width) => innerWidth === width
    && new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))
        .then(() => document.fonts.ready).then(() => true)"""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "path" in metafunc.fixturenames:
        site = Path(metafunc.config.getoption("site"))
        pages = sorted(str(file.relative_to(site).parent) for file in site.rglob("index.html"))
        metafunc.parametrize("path", pages)


@contextmanager
def complaints(page: Page, address: str) -> Iterator[list[str]]:
    """Whatever the console, the network or an exception has to say meanwhile."""
    found: list[str] = []
    listeners = {
        "console": lambda message: message.type in ("error", "warning") and found.append(f"console: {message.text}"),
        "pageerror": lambda error: found.append(f"exception: {error}"),
        "request": lambda request: (
            request.url.startswith((address, "data:", "blob:")) or found.append(f"outside: {request.url}")
        ),
        "response": lambda response: response.status < 400 or found.append(f"{response.status}: {response.url}"),
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    yield found
    for event, listener in listeners.items():
        page.remove_listener(event, listener)


def scheme(page: Page) -> str:
    return page.evaluate("document.body.dataset.mdColorScheme")


def switch(page: Page, palette: str) -> None:
    """Press the button in the header, as a reader does, and wait for no fading."""
    page.emulate_media(color_scheme=palette)
    page.add_style_tag(content="* { transition: none !important }")
    page.evaluate(f"document.querySelector('input[data-md-color-scheme={SCHEMES[palette]}]').click()")
    assert scheme(page) == SCHEMES[palette]


def test_page(visitor: Page, settle: Callable[[Page], object], address: str, path: str) -> None:
    """One visit in both palettes, because most of the time goes into loading a page and setting its formulas."""
    visitor.set_viewport_size(LAPTOP)
    visitor.emulate_media(color_scheme="light")
    problems: dict[str, list[str]] = {}
    with complaints(visitor, address) as found:
        visitor.goto(f"{address}{path}/".replace("./", ""), wait_until="load")
        settle(visitor)
        assert scheme(visitor) == SCHEMES["light"]
        visitor.evaluate(AXE)
        problems["accessibility"] = visitor.evaluate(VIOLATIONS, OTHERS)
        problems["formulas not rendered"] = visitor.evaluate(UNRENDERED) + visitor.evaluate(RAW)
        problems["images not shown"] = visitor.evaluate(BROKEN_IMAGES)
        problems["contrast in light"] = visitor.evaluate(CONTRAST_VIOLATIONS, CONTRAST)
        problems["cut off on a laptop"] = visitor.evaluate(CUT_OFF, True)
        switch(visitor, "dark")
        problems["contrast in dark"] = visitor.evaluate(CONTRAST_VIOLATIONS, CONTRAST)
        visitor.set_viewport_size(PHONE)
        visitor.wait_for_function(RESIZED, arg=PHONE["width"])  # formulas are set anew
        problems["wider than a phone"] = visitor.evaluate(WIDE)
        problems["cut off on a phone"] = visitor.evaluate(CUT_OFF, False)
    problems["complaints"] = found
    lines = [f"{kind}: {one}" for kind, some in problems.items() for one in dict.fromkeys(some)]
    assert not lines, "\n".join([path, *lines])


@pytest.mark.parametrize("palette", SCHEMES)
def test_the_palette_is_that_of_the_system(opened: Callable[..., Page], address: str, palette: str) -> None:
    page = opened(color_scheme=palette)
    page.goto(address)
    assert scheme(page) == SCHEMES[palette]
