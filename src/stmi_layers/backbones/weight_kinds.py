"""Kind of a weights file by its first bytes, and the shards that an index names."""

import json
import zipfile
from pathlib import Path

INDEX = ".index.json"


class UnreadableError(ValueError):
    """Error for a file that cannot be read; its message is complete and is shown to the user."""


def kind_of(path: Path) -> str:
    """Return "safetensors", "zip" (newer torch files) or "pickle" (older torch files).

    Raises:
        UnreadableError: when the file is of no such kind; the message names its likely kind.
    """
    with path.open("rb") as file:
        head = file.read(64)
    if head.startswith(b"version https://git-lfs"):
        raise UnreadableError(
            f"{path} is a pointer of Git LFS instead of the weights: fetch the file itself, by git lfs pull"
        )
    is_zip = zipfile.is_zipfile(path)
    # A safetensors file begins with the length of its JSON header.
    if (path.suffix == ".safetensors" and not is_zip) or head[8:9] == b"{":
        return "safetensors"
    if is_zip:
        return "zip"
    if head.startswith(b"PK"):
        raise UnreadableError(f"{path} is cut short: the end of the archive is missing. Take another copy")
    if not head.startswith((b"\x80", b"}")):  # first byte of a pickle of torch
        raise UnreadableError(f"{path} is damaged or no torch file: it begins with {head[:12]!r}")
    return "pickle"


def shards_of(index: Path) -> dict[Path, list[str]]:
    """Return the names of tensors by shard; shards are in the folder of the index.

    Raises:
        UnreadableError: when `index` is no index of shards, or names a missing file or a file in another folder.
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
            raise UnreadableError(f"{index} must name existing files in its own folder; received {file!r}")
        found.setdefault(path, []).append(name)
    return found
