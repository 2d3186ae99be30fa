"""Kind of a weights file as its first bytes tell it, and the shards that an index names."""

import json
import zipfile
from pathlib import Path

INDEX = ".index.json"


class UnreadableError(ValueError):
    """A file that cannot be read, with the message that people are to see."""


def kind_of(path: Path) -> str:
    """Tell "safetensors", "zip", which newer torch files are, or "pickle", which older ones are.

    Raises:
        UnreadableError: when the file is none of these, with what it may be.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise UnreadableError(
            f"{path} is a pointer of Git LFS in place of the weights: fetch the file itself, by git lfs pull"
        )
    is_zip = zipfile.is_zipfile(path)
    # A safetensors file begins with the length of its JSON header.
    if (path.suffix == ".safetensors" and not is_zip) or head[8:9] == b"{":
        return "safetensors"
    if is_zip:
        return "zip"
    if head.startswith(b"PK"):
        raise UnreadableError(f"{path} is cut short: the end of the archive is missing. Take another copy")
    if not head.startswith((b"\x80", b"}")):  # of a pickle in any protocol that torch has written
        raise UnreadableError(f"{path} is damaged or no torch file: it begins with {head[:12]!r}")
    return "pickle"


def shards_of(index: Path) -> dict[Path, list[str]]:
    """The names of tensors by shard, which lie beside the index.

    Raises:
        UnreadableError: when the index is none, or names a file elsewhere or one that is not there.
    """
    try:
        places = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        named = {str(name): str(file) for name, file in places.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise UnreadableError(f"{index} is no index of shards, JSON with an object 'weight_map': {error!r}") from error
    found: dict[Path, list[str]] = {}
    for name, file in named.items():
        path = index.parent / file
        if Path(file).name != file or file.endswith(INDEX) or not path.is_file():
            raise UnreadableError(f"{index} must name files beside it; there is no {file!r}")
        found.setdefault(path, []).append(name)
    return found
