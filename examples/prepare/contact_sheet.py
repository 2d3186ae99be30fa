"""Some items of every split in one picture: their modalities side by side, the mask outlined."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from stmi_layers.training.record import Item, Source, find_defect, read_image, read_mask

HEIGHT, WIDTH, GAP, LEFT, TOP = 128, 192, 4, 260, 30
PAPER, INK, OUTLINE = (250, 250, 248), (40, 40, 40), (255, 217, 47)


def draw_contact_sheet(
    splits: Mapping[str, Sequence[Item]], modalities: Sequence[str], path: Path, *, rows_per_split: int = 6
) -> Path:
    """Write a PNG of items spread evenly over every split.

    Args:
        splits: items by name of the split.
        modalities: names of the images of an item.
        path: of the PNG.
        rows_per_split: items shown of each.
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
        for column, (source, mask) in enumerate(zip(item.images, item.masks, strict=True)):
            sheet.paste(_cell(source, mask), (LEFT + column * (WIDTH + GAP), top))
    sheet.save(path)
    return path


def _label(split: str, item: Item) -> str:
    known = {"identity": item.identity, "camera": item.camera, "scene": item.scene, "view": item.view}
    facts = [f"{name} {value}" for name, value in known.items() if value is not None]
    role = "" if item.role == "both" else f", {item.role}"
    caption = [item.caption[:36]] if item.caption else []
    return "\n".join([f"{split}{role}", item.name[:36], ", ".join(facts[:2]), ", ".join(facts[2:]), *caption])


def _cell(source: Source | None, mask: Path | None) -> Image.Image:
    cell = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(cell)
    if source is None or find_defect(source):
        draw.text((8, HEIGHT // 2 - 8), "missing" if source is None else "unreadable", INK)
        return cell
    image = read_image(source).convert("RGB")
    scale = min(WIDTH / image.width, HEIGHT / image.height)
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    if mask is not None and find_defect(mask, is_mask=True) is None:
        inside = np.array(Image.fromarray(read_mask(mask)).resize(image.size, Image.Resampling.NEAREST))
        padded = np.pad(inside, 1, mode="edge")
        inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
        pixels = np.array(image)
        pixels[inside & ~inner] = OUTLINE
        image = Image.fromarray(pixels)
    cell.paste(image, (0, 0))
    return cell
