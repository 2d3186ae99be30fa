"""Record of one multi-modal sample on disk."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

Role = Literal["both", "query", "gallery"]


class Panel(NamedTuple):
    """One of `count` images that lie side by side in one file, counted from the left, from 0 on."""

    path: Path
    index: int
    count: int


Source = Path | Panel


@dataclass(frozen=True)
class Item:
    """One multi-modal sample.

    Attributes:
        name: stem that its files share; with their folder, `<identity>/<stem>`, where stems repeat in a layout.
        identity: identity of the object, a number or a name; None where it is unknown.
        images: one file, or panel of a file, per modality; None where it is missing.
        masks: one file per modality, repeated where the mask is common; None where it is missing.
        camera: number of the camera; None if the set has no camera numbers (MSVR310, WMVEID863).
        view: number of the viewpoint; None if the set has no viewpoint numbers.
        scene: number of the place or session; None if the set has no scene numbers.
        captions: () without captions; one string for all modalities together; or one string per modality, "" where it
            is missing.
        role: "query" or "gallery" in a test split that tells them apart, otherwise "both".
        layout: name of the layout that the item was read from.
        columns: further values by name, from `items.csv`, the manifest, or the name of the file.
    """

    name: str
    identity: int | str | None
    images: tuple[Source | None, ...]
    masks: tuple[Path | None, ...]
    camera: int | None = None
    view: int | None = None
    scene: int | None = None
    captions: tuple[str, ...] = ()
    role: Role = "both"
    layout: str = "folders"
    columns: Mapping[str, str] = field(default_factory=dict, hash=False)


def path_of(source: Source) -> Path:
    """Return the file of a source."""
    return source.path if isinstance(source, Panel) else source


def files_of(item: Item) -> set[Path]:
    """Return all files of an item."""
    return {path_of(source) for source in (*item.images, *item.masks) if source}


def joined(captions: Sequence[str]) -> str:
    """Join the captions of an item into one text, in the order of the modalities, equal captions once."""
    return " ".join(dict.fromkeys(caption for caption in captions if caption))


def split_words(caption: str) -> list[str]:
    """Split a caption into words in lower case, without punctuation."""
    return re.findall(r"[^\W_]+", caption.lower())


def unlabelled(names: Sequence[str], images: Sequence[Sequence[Source | None]]) -> list[Item]:
    """Make items of images without identity, camera, masks or captions, for your own gallery or queries.

    Args:
        names: name of every item.
        images: files of every item, one per modality; None where it is missing.
    """
    return [
        Item(name, None, tuple(sources), (None,) * len(sources)) for name, sources in zip(names, images, strict=True)
    ]


# Fields of an item beside its name, as they stand in files.
PLAIN = ("identity", "camera", "view", "scene", "captions", "role", "layout", "columns", "images", "masks")


def plain_value(value: Any) -> Any:
    """Return a field of an item as JSON holds it."""
    if isinstance(value, Panel):
        return [str(value.path), value.index, value.count]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple):
        return [plain_value(part) for part in value]
    return dict(value) if isinstance(value, Mapping) else value


def plain_item(item: Item) -> dict[str, Any]:
    """Return an item as plain values, as JSON holds them."""
    return {"name": item.name} | {name: plain_value(getattr(item, name)) for name in PLAIN}


def item_of(values: Mapping[str, Any]) -> Item:
    """Return the item of plain values, as `plain_item` made them.

    Raises:
        LookupError, TypeError, ValueError: when a value is missing, unknown, or of another type.
    """
    given = dict(values)
    images = tuple(_source(one) for one in given.pop("images"))
    masks = tuple(None if one is None else Path(one) for one in given.pop("masks"))
    if len(images) != len(masks):
        raise ValueError(f"item must have as many masks as images; received {len(masks)} and {len(images)}")
    item = Item(given.pop("name"), given.pop("identity"), images, masks, captions=tuple(given.pop("captions")), **given)
    texts = (item.name, item.role, item.layout, *item.captions, *item.columns, *item.columns.values())
    numbers = (item.camera, item.view, item.scene)
    whole = all(one is None or type(one) is int for one in numbers)
    if not whole or not all(isinstance(one, str) for one in texts) or not isinstance(item.identity, int | str | None):
        raise TypeError(f"item must hold texts and whole numbers; received {dict(values)}")
    return item


def _source(value: Any) -> Source | None:
    if value is None:
        return None
    if not isinstance(value, list):
        return Path(value)
    path, index, count = value
    if type(index) is not int or type(count) is not int or not 0 <= index < count:
        raise ValueError(f"panel must be a path, its index and a count; received {value}")
    return Panel(Path(path), index, count)
