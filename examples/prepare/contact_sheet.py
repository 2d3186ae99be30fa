"""Contact sheet: some items of every split, their modalities side by side, with the mask outlined."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from stmi_layers.training.files import write_whole
from stmi_layers.training.images import read_image, read_mask
from stmi_layers.training.messages import printable
from stmi_layers.training.record import Item, Source, joined
from stmi_layers.training.settings import Range
from stmi_layers.training.transforms import erode

HEIGHT, WIDTH, GAP, LEFT, TOP = 128, 192, 4, 260, 30
PAPER, INK, OUTLINE = (250, 250, 248), (40, 40, 40), (255, 217, 47)


def draw_contact_sheet(
    splits: Mapping[str, Sequence[Item]],
    modalities: Sequence[str],
    path: Path,
    *,
    ranges: Mapping[str, Range] | None = None,
    rows_per_split: int = 6,
) -> Path:
    """Write a PNG of items spread evenly over every split.

    Args:
        splits: items by name of the split.
        modalities: names of the images of an item.
        path: the PNG to write.
        ranges: counts that become black and white in deep images, by modality; the image's own extremes by default.
        rows_per_split: number of items of each split to show.
    """
    shown = [
        (split, items[index])
        for split, items in splits.items()
        for index in np.linspace(0, len(items) - 1, min(rows_per_split, len(items))).astype(int)
    ]
    size = LEFT + len(modalities) * (WIDTH + GAP), TOP + len(shown) * (HEIGHT + GAP)
    sheet = Image.new("RGB", size, PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=13)
    for column, modality in enumerate(modalities):
        draw.text((LEFT + column * (WIDTH + GAP), 8), modality, INK, font)
    for row, (split, item) in enumerate(shown):
        top = TOP + row * (HEIGHT + GAP)
        draw.multiline_text((8, top + 4), _label(split, item), INK, font)
        for column, (name, source, mask) in enumerate(zip(modalities, item.images, item.masks, strict=True)):
            sheet.paste(_cell(source, mask, (ranges or {}).get(name)), (LEFT + column * (WIDTH + GAP), top))
    with write_whole(path) as file:
        sheet.save(file, "PNG")
    return path


def _label(split: str, item: Item) -> str:
    known = {"identity": item.identity, "camera": item.camera, "scene": item.scene, "view": item.view}
    facts = [f"{name} {value}" for name, value in known.items() if value is not None]
    role = "" if item.role == "both" else f", {item.role}"
    caption = joined(item.captions)[:36]
    lines = [
        f"{split}{role}",
        item.name[:36],
        ", ".join(facts[:2]),
        ", ".join(facts[2:]),
        *([caption] if caption else []),
    ]
    return "\n".join(map(printable, lines))


def _cell(source: Source | None, mask: Path | None, bounds: Range | None) -> Image.Image:
    cell = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    image = None if source is None else _read(source, bounds)
    if image is None:
        ImageDraw.Draw(cell).text((8, HEIGHT // 2 - 8), "missing" if source is None else "unreadable", INK)
        return cell
    scale = min(WIDTH / image.width, HEIGHT / image.height)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    cell.paste(image if mask is None else _outlined(image, mask), (0, 0))
    return cell


def _read(source: Source, bounds: Range | None) -> Image.Image | None:
    """Read an image for display, a deep image without range between its own extremes; None if it is damaged."""
    for one in (bounds, "image"):
        try:
            return read_image(source, one)
        except Exception:  # whatever a damaged file does to a decoder; inspect names the file
            continue
    return None


def _outlined(image: Image.Image, path: Path) -> Image.Image:
    """Paint the border of a mask into its image, if the mask can be read."""
    try:
        stored = Image.fromarray(read_mask(path))
    except Exception:  # as above
        return image
    inside = torch.from_numpy(np.array(stored.resize(image.size, Image.Resampling.NEAREST)))
    pixels = np.array(image)
    pixels[(inside & ~erode(inside, 1, diagonals=False)).numpy()] = OUTLINE
    return Image.fromarray(pixels)
