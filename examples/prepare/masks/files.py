"""Masks on disk. A text chunk of the PNG notes the method and the quality of a mask. By this note a run can be
continued, a report written again, and a mask from another source recognised and kept."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from examples.prepare.masks.quality import Quality
from examples.prepare.masks.regions import Mask
from stmi_layers.training.files import write_whole
from stmi_layers.training.images import opened
from stmi_layers.training.layouts import MODALITY_FIRST
from stmi_layers.training.record import Item, Panel, path_of

KEY = "stmi-mask"


class Note(NamedTuple):
    """Note about the origin of a mask, stored in its file."""

    method: str
    quality: Quality


def mask_path(item: Item, folder: str, root: Path) -> Path:
    """Return the path at which the reader of a data set looks for the mask of an item: in the place of a modality.

    For a manifest, which names masks itself, the path is ROOT/<folder>/<item>.png.
    """
    source = next(source for source in item.images if source is not None)
    path, file = path_of(source), f"{item.name.rpartition('/')[2]}.png"
    if item.layout == "manifest":
        return (root if root.is_dir() else root.parent) / folder / f"{item.name}.png"
    if item.layout == MODALITY_FIRST.name:
        return path.parents[2] / folder / path.parent.name / file
    return (path.parent if isinstance(source, Panel) else path.parents[1]) / folder / file


def write_mask(path: Path, mask: Mask, note: Note) -> None:
    """Write a mask as 0 and 255, with its note, whole or not at all."""
    text = PngInfo()
    text.add_text(KEY, json.dumps({"method": note.method, "quality": asdict(note.quality)}))
    with write_whole(path) as file:
        Image.fromarray(mask.astype(np.uint8) * 255).save(file, format="PNG", pnginfo=text)


def read_note(path: Path) -> Note | None:
    """Read the note of `write_mask`; None for a mask from another source."""
    if path.suffix.lower() != ".png":
        return None
    with opened(path) as image:
        image.load()  # text may follow the pixels
        text = image.info.get(KEY)
    try:
        content = json.loads(text or "")
        return Note(str(content["method"]), Quality(**content["quality"]))
    except (ValueError, KeyError, TypeError, RecursionError):  # a text under our key from another program
        return None
