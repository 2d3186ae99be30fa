"""Items of one folder of a split, read from the names of its files."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stmi_layers.training.images import SUFFIXES
from stmi_layers.training.layouts.layout import Layout, refuse_unreadable
from stmi_layers.training.messages import shorten
from stmi_layers.training.record import Item, Role, Source, path_of

NUMBERS = ("camera", "scene", "view")
# Tensors hold numbers of 64 bits.
DIGITS = 18


def list_folder(layout: Layout, folder: Path, role: Role, modalities: Sequence[str]) -> list[Item]:
    """List the items of one folder by name, without captions.

    Raises:
        FileNotFoundError: when a modality, or its images, do not exist.
        ValueError: when names break the rule of the layout.
    """
    images = [_images(layout, folder, modality) for modality in modalities]
    names = sorted(set().union(*images))
    matches = {name: layout.pattern.fullmatch(name) for name in names}
    strange = [name for name, match in matches.items() if match is None]
    if strange:
        raise ValueError(
            f"{folder}: names must be {layout.rule}; {len(strange)} are not: {shorten(strange)} (read as {layout.name})"
        )
    shared = layout.list_files(folder, "mask")
    masks = [shared | layout.list_files(folder, f"mask_{modality}") for modality in modalities]
    return [
        Item(
            name,
            images=tuple(files.get(name) for files in images),
            masks=tuple(path_of(files[name]) if name in files else None for files in masks),
            role=role,
            layout=layout.name,
            **read_fields(match.groupdict(), f"{folder}: {name}", named=layout.named),
        )
        for name, match in matches.items()
        if match is not None
    ]


def read_fields(values: Mapping[str, str | None], where: str, *, named: bool) -> dict[str, Any]:
    """Read identity and numbers of an item; other values become its columns, and empty values are left out.

    Args:
        values: texts by name.
        where: file and item, for the message.
        named: identities are names as written, so that 007 and 7 differ; otherwise identities are numbers.

    Raises:
        ValueError: when a number is not a whole number of at most 18 digits.
    """
    given = {name: value for name, value in values.items() if value}
    identity = given.pop("identity", None)
    fields: dict[str, Any] = {"identity": identity}
    if identity is not None and re.fullmatch(r"-?(0|[1-9][0-9]*)(\.0+)?" if named else "-?[0-9]+", identity):
        fields["identity"] = _number(identity, "identity", where)
    for name in NUMBERS:
        if name in given:
            fields[name] = _number(given.pop(name), name, where)
    return {**fields, "columns": given}


def _number(text: str, name: str, where: str) -> int:
    text = re.sub(r"\.0+$", "", text)  # other programs store a column with missing values as floating numbers
    if not re.fullmatch("-?[0-9]+", text) or len(text.lstrip("-0")) > DIGITS:
        raise ValueError(f"{where}: {name} must be a whole number of at most {DIGITS} digits; received {text[:40]!r}")
    return int(text)


def _images(layout: Layout, folder: Path, modality: str) -> dict[str, Source]:
    there = layout.list_modalities(folder)
    if modality in there:
        return layout.list_files(folder, modality)
    if os.path.isdir(folder / modality):
        refuse_unreadable(folder / modality)
        raise FileNotFoundError(f"{folder}: {modality} holds no images ({' '.join(SUFFIXES)})")
    raise FileNotFoundError(f"{folder} has no modality folder {modality!r}; it has {', '.join(there) or 'none'}")
