"""Listing of items on disk, a line of JSON each, so that any number of items can be described in bounded memory."""

import json
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from stmi_layers.training.files import digest_of, write_whole
from stmi_layers.training.messages import shorten
from stmi_layers.training.record import Item, files_of, item_of, plain_item

PROBLEMS = {
    "blind": "items have no image in any modality of the model: {}",
    "lost": "files are named and missing: {}",
    "bare": "items lack a mask, which the model was trained with: {}; pass --masks classical to make masks on the fly, "
    "--masks ones to take images whole, or --masks none",
}


def write_listing(path: Path, items: Iterator[Item], modalities: Sequence[str], *, masks: bool) -> None:
    """Write items as lines of JSON with absolute paths, and refuse items that cannot be described.

    Warns of modalities that some items have and others lack.

    Args:
        path: file to write.
        items: items to write, read one at a time.
        modalities: modalities of the model, in its order.
        masks: whether every image needs the file of its mask.

    Raises:
        ValueError: when there is no item, or files or masks are missing.
    """
    found: dict[str, list[str]] = {"blind": [], "lost": [], "bare": []}
    counts = Counter[str]()

    def note(kind: str, name: str) -> None:
        counts[kind] += 1
        found[kind] += [name] if counts[kind] <= 5 else []

    with write_whole(path) as file:
        for item in items:
            counts["all"] += 1
            counts.update(f"no {name}" for name, one in zip(modalities, item.images, strict=True) if one is None)
            if not any(item.images):
                note("blind", item.name)
            for one in sorted(files_of(item)):
                if not one.is_file():
                    note("lost", str(one))
            if masks and any(image and not mask for image, mask in zip(item.images, item.masks, strict=True)):
                note("bare", item.name)
            file.write(json.dumps(absolute(plain_item(item))).encode() + b"\n")
        refuse(counts, found)
    lacking = [f"{counts[f'no {name}']} no {name}" for name in modalities if 0 < counts[f"no {name}"] < counts["all"]]
    if lacking:
        warnings.warn(f"of {counts['all']} items some have no image in a modality: {', '.join(lacking)}", stacklevel=2)


def refuse(counts: Mapping[str, int], found: Mapping[str, Sequence[str]]) -> None:
    """Refuse a listing without items, or with items that cannot be described."""
    if not counts["all"]:
        raise ValueError("images must name at least one image; received none")
    for kind, say in PROBLEMS.items():
        if counts[kind]:
            more = f" and {counts[kind] - 5} more" if counts[kind] > 5 else ""
            raise ValueError(f"{counts[kind]} {say.format(shorten(found[kind]) + more)}")


def absolute(values: dict) -> dict:
    """Plain values of an item with absolute paths, so that an index can be used from anywhere."""

    def whole(value):
        if isinstance(value, list):
            return [str(Path(value[0]).absolute()), *value[1:]]
        return None if value is None else str(Path(value).absolute())

    return values | {name: [whole(one) for one in values[name]] for name in ("images", "masks")}


class Listing(Sequence[Item]):
    """Items in a file of `write_listing`; 8 bytes of memory per item."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            starts = np.cumsum(np.fromiter((len(line) for line in file), np.int64))
        self._starts = np.concatenate([[0], starts])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, index) -> Item:  # pyright: ignore[reportIncompatibleMethodOverride]
        row = range(len(self))[index]
        start, stop = int(self._starts[row]), int(self._starts[row + 1])
        with self.path.open("rb") as file:  # a shared open file would share its position between processes
            file.seek(start)
            line = file.read(stop - start)
        try:
            return item_of(json.loads(line))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise ValueError(f"{self.path} must hold an item per line; line {row + 1} does not: {error!r}") from error

    def digest(self) -> str:
        """Return a digest of the file."""
        return digest_of(self.path)
