"""Masks on disk. Each says in a text chunk of its PNG how it was made and how good it seemed, so that a run can be
continued, a report written again, and a mask by somebody else recognised and left alone."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from examples.prepare.masks.quality import Quality
from examples.prepare.masks.regions import Mask
from stmi_layers.training.record import Item, Panel, path_of

KEY = "stmi-mask"


class Note(NamedTuple):
    """What a mask says about itself."""

    method: str
    quality: Quality


def mask_path(item: Item, folder: str) -> Path:
    """Where the reader of the data set looks for the mask of an item: beside the folders of its modalities, or, where
    one file holds all modalities, beside the files."""
    source = next(source for source in item.images if source is not None)
    parent = path_of(source).parent
    return (parent if isinstance(source, Panel) else parent.parent) / folder / f"{item.name}.png"


def write_mask(path: Path, mask: Mask, note: Note) -> None:
    """Write 0 and 255 under another name first and rename, so that a mask is whole or absent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = PngInfo()
    text.add_text(KEY, json.dumps({"method": note.method, "quality": asdict(note.quality)}))
    # A leading dot, so that what a killed run leaves behind is no mask to the reader.
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.unfinished")
    Image.fromarray(mask.astype(np.uint8) * 255).save(unfinished, format="PNG", pnginfo=text)
    unfinished.replace(path)


def read_note(path: Path) -> Note | None:
    """What `write_mask` noted; None when somebody else made the mask."""
    if path.suffix.lower() != ".png":
        return None
    with Image.open(path) as image:
        image.load()  # text may follow the pixels
        text = image.info.get(KEY)
    if text is None:
        return None
    content = json.loads(text)
    return Note(content["method"], Quality(**content["quality"]))
