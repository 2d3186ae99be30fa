"""Links within the site: the page and the anchor exist. No browser is needed."""

from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

HOST = "http://host/"


class _Page(HTMLParser):
    def __init__(self, file: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.places: set[str] = {"", "__skip"}
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.places.add(value)
            elif (name == "href" or (name == "src" and tag != "link")) and value:
                self.targets.append(value)


def test_no_link_is_broken(site: Path) -> None:
    pages = {str(file.relative_to(site)): _Page(file) for file in site.rglob("*.html") if file.name != "404.html"}
    assert pages, f"{site} holds no pages; run make docs"
    broken, seen = [], 0
    for name, page in pages.items():
        for target in page.targets:
            link = urlsplit(urljoin(HOST + name, target))
            if link.hostname != "host" or link.scheme != "http":
                continue
            seen += 1
            path = unquote(link.path).removeprefix("/")
            path = path + "index.html" if path == "" or path.endswith("/") else path
            there = pages[path].places if path in pages else {""}
            if not (site / path).is_file() or (path in pages and unquote(link.fragment) not in there):
                broken.append(f"{name}: {target}")
    assert seen > 10 * len(pages)
    assert broken == []
