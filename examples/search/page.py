"""HTML page of queries and their matches: one file that contains all images and loads nothing."""

import base64
import io
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from examples.search.matches import Match
from stmi_layers.training.files import write_text
from stmi_layers.training.record import Item

HEIGHT = 144
OUTLINE = (255, 214, 10)
VERDICTS = {True: "right", False: "wrong", None: "unknown"}
# An image per modality, None where it is missing, and the masks to outline on the images.
Picture = tuple[list[Image.Image | None], list[NDArray[np.bool_] | None]]
Draw = Callable[[Item], Picture]


def write_page(
    path: Path,
    queries: Sequence[Item],
    matches: Sequence[Sequence[Match]],
    modalities: Sequence[str],
    draw: Draw,
    *,
    note: str,
) -> None:
    """Write the page.

    Args:
        path: file to write.
        queries: items of the queries.
        matches: matches of every query.
        modalities: names of the modalities of an item.
        draw: function that returns the images and masks of an item.
        note: line below the title.
    """
    cameras = sorted({match.item.camera for some in matches for match in some if match.item.camera is not None})
    sections = [
        _query(number, query, some, modalities, draw)
        for number, (query, some) in enumerate(zip(queries, matches, strict=True))
    ]
    template = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
    options = "".join(f'<option value="{camera}">camera {camera}</option>' for camera in cameras)
    boxes = "".join(
        f'<label><input type="checkbox" name="modality" value="{escape(name)}" checked> {escape(name)}</label>'
        for name in modalities
    )
    parts = {"NOTE": escape(note), "CAMERAS": options, "MODALITIES": boxes, "QUERIES": "\n".join(sections)}
    for name, text in parts.items():
        template = template.replace(f"<!--{name}-->", text)
    write_text(path, template)


def _query(number: int, query: Item, some: Sequence[Match], modalities: Sequence[str], draw: Draw) -> str:
    cards = "\n".join(_card(rank, match, modalities, draw) for rank, match in enumerate(some, start=1))
    answer = f'<ol class="matches">{cards}</ol>' if some else '<p class="none">Not in the gallery.</p>'
    return (
        f'<section class="query" aria-labelledby="q{number}"><h2 id="q{number}" tabindex="-1">Query '
        f'{escape(query.name)}</h2><div class="row"><div class="card asked">{_pictures(query, modalities, draw)}'
        f"<p>{_facts(query)}</p></div>{answer}</div></section>"
    )


def _card(rank: int, match: Match, modalities: Sequence[str], draw: Draw) -> str:
    verdict = VERDICTS[match.right]
    said = "" if match.right is None else f'<b class="verdict">{verdict}</b> '
    camera = "" if match.item.camera is None else str(match.item.camera)
    label = f"Enlarge match {rank}: {escape(match.item.name)}"
    return (
        f'<li class="card {verdict}" data-camera="{camera}"><button type="button" aria-label="{label}">'
        f"{_pictures(match.item, modalities, draw)}</button>"
        f"<p>{rank}. {said}{escape(match.item.name)}<br>similarity {match.similarity:.3f}, distance "
        f"{match.distance:.3f}<br>{_facts(match.item)}</p></li>"
    )


def _facts(item: Item) -> str:
    numbers = {name: getattr(item, name) for name in ("identity", "camera", "view", "scene")}
    return escape(", ".join(f"{name} {value}" for name, value in numbers.items() if value is not None))


def _pictures(item: Item, modalities: Sequence[str], draw: Draw) -> str:
    images, masks = draw(item)
    shown = [
        f'<img data-modality="{escape(name)}" alt="{escape(f"{item.name}, {name}")}" src="{_data(image, mask)}">'
        for name, image, mask in zip(modalities, images, masks, strict=True)
        if image is not None
    ]
    return f'<span class="pictures">{"".join(shown)}</span>'


def _data(image: Image.Image, mask: NDArray[np.bool_] | None) -> str:
    size = (max(1, round(HEIGHT * image.width / image.height)), HEIGHT)
    pixels = np.array(image.convert("RGB").resize(size, Image.Resampling.BILINEAR))
    if mask is not None:
        shown = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        pixels = np.where(edge(shown)[..., None], np.array(OUTLINE, np.uint8), pixels)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return the foreground pixels with a background neighbour."""
    around = np.pad(mask, 1, mode="edge")
    return mask & ~(around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:])
