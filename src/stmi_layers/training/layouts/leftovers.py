"""Files of a set that are not read, counted by folder and suffix, so that no file is silently dropped."""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

from stmi_layers.training.layouts.layout import ARRAY, is_image, is_mask_folder, is_result, is_system

# Suffixes of other files that are usual beside images.
DOCUMENTS = (
    *(".txt", ".md", ".rst", ".html", ".pdf", ".json", ".jsonl", ".csv", ".tsv", ".xml", ".yaml", ".yml", ".log"),
    *(".py", ".m", ".parquet", ".pq", ".safetensors", ".zip", ".tar", ".gz", ".7z", ".rar", ".sha256", ".md5"),
)
# Documents without a suffix; any other file without one may be an image.
NAMED = ("readme", "license", "licence", "copying", "notice", "citation", "authors", "changelog", "makefile")
DEPTH = 6


def passed_over(folders: Collection[Path]) -> dict[Path, Counter[str]]:
    """Count the files that are not images by folder and suffix, without documents and system files."""
    found: dict[Path, Counter[str]] = {}
    for folder in sorted(folders):
        arrays = (ARRAY,) if any(map(is_mask_folder, folder.parts[-2:])) else ()
        names = [name for name in _names(folder) if not is_image(name) and name.lower() not in NAMED]
        suffixes = [os.path.splitext(name)[1] for name in names]
        counts = Counter(one for one in suffixes if one.lower() not in (*DOCUMENTS, *arrays))
        if counts:
            found[folder] = counts
    return found


def _names(folder: Path) -> Iterator[str]:
    """Yield the names of the files in a folder, without system files; none if the folder cannot be read."""
    try:
        with os.scandir(folder) as entries:
            yield from (entry.name for entry in entries if not is_system(entry.name) and entry.is_file())
    except OSError:
        return


def unread_images(folders: Collection[Path], used: Collection[Path]) -> dict[Path, int]:
    """Count the images by folder that belong to no item."""
    known = set(used)
    counts = {
        folder: sum(is_image(name) and folder / name not in known for name in _names(folder)) for folder in folders
    }
    return {folder: count for folder, count in counts.items() if count}


def all_folders(base: Path, *, depth: int = DEPTH, unreadable: list[Path] | None = None) -> list[Path]:
    """List the folder of a set and all folders below, each once, links followed, without system and result folders.

    Args:
        base: the folder.
        depth: levels below it.
        unreadable: list to which the folders that cannot be read are added.
    """
    found: list[Path] = []
    known: set[tuple[int, int]] = set()  # a link may lead back

    def note(error: OSError) -> None:
        if unreadable is not None:
            unreadable.append(Path(os.fsdecode(error.filename)))

    for place, folders, _ in os.walk(base, onerror=note, followlinks=True):
        state = os.stat(place)
        new = (state.st_dev, state.st_ino) not in known and (not found or not is_result(Path(place)))
        known.add((state.st_dev, state.st_ino))
        if new:
            found.append(Path(place))
        too_deep = len(Path(place).relative_to(base).parts) >= depth
        folders[:] = sorted(name for name in folders if not is_system(name)) if new and not too_deep else []
    return found


def describe_counts(counts: Counter[str]) -> str:
    """Describe numbers of files by suffix, such as 24 .heic, 2 .raw."""
    return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(counts.items()))
