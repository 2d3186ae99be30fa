"""Figure of doubtful masks, the most doubtful first, with the reasons."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from examples.prepare.masks.make import Settings
from examples.prepare.masks.regions import Mask
from examples.prepare.masks.report import Entry
from stmi_layers.training.files import write_whole
from stmi_layers.training.images import read_image, read_mask
from stmi_layers.training.settings import Range
from stmi_layers.training.transforms import erode

HEIGHT, GAP, LINE, WIDTH = 96, 4, 14, 1400
OUTLINE = (255, 214, 10)


def draw_sheet(path: Path, entries: Sequence[Entry], title: str, settings: Settings) -> Path:
    """Draw each entry as its images with the outline of the mask, and below them the images with a dark background."""
    lines = 1 + max(len(entry.doubts) for entry in entries)
    bounds: list[Range | None] = [settings.ranges.get(name) for name in settings.modalities]
    cells = [_draw_cell(entry, bounds, LINE * lines + GAP) for entry in entries]
    wide = max(cell.width for cell in cells) + 3 * GAP
    columns = max(1, WIDTH // wide)
    tall = cells[0].height + 3 * GAP
    rows = -(-len(cells) // columns)
    sheet = Image.new("RGB", (max(columns * wide, WIDTH) + GAP, rows * tall + 2 * LINE), (250, 250, 248))
    ImageDraw.Draw(sheet).text((GAP, GAP), title, (20, 20, 20), ImageFont.load_default(size=13))
    for index, cell in enumerate(cells):
        row, column = divmod(index, columns)
        sheet.paste(cell, (GAP + column * wide, 2 * LINE + row * tall))
    with write_whole(path) as file:
        sheet.save(file, format="PNG")
    return path


def _draw_cell(entry: Entry, bounds: Sequence[Range | None], top: int) -> Image.Image:
    mask = read_mask(entry.task.path)
    pictures = []
    for source, one in zip(entry.task.item.images, bounds, strict=True):
        if source is None:
            continue
        image = read_image(source, one)
        size = (max(1, round(HEIGHT * image.width / image.height)), HEIGHT)
        pixels = np.array(image.resize(size, Image.Resampling.BILINEAR))
        shown = np.array(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
        outlined = np.where(_edge(shown)[..., None], np.array(OUTLINE, np.uint8), pixels)
        alone = np.where(shown[..., None], pixels, pixels // 6)
        pictures.append(np.concatenate([outlined, alone]))
    body = np.concatenate(pictures, axis=1)
    cell = Image.new("RGB", (max(body.shape[1], 210), body.shape[0] + top), (250, 250, 248))
    cell.paste(Image.fromarray(body), (0, top))
    reasons = [f"{reason} {strength:.2f}" for reason, strength in entry.doubts.items()]
    label = "\n".join([f"{entry.task.split} {entry.task.item.name} ({entry.task.state})", *reasons])
    ImageDraw.Draw(cell).multiline_text((0, 2), label, (40, 40, 40), ImageFont.load_default(size=11))
    return cell


def _edge(mask: Mask) -> Mask:
    """Return the foreground pixels with a background neighbour."""
    return mask & ~erode(torch.from_numpy(mask), 1, diagonals=False).numpy()
