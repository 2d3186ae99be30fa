"""Checks of image and mask files: each is decoded once, in threads, and its result kept until the file changes.

Files that passed are recorded in the user's cache folder, by path, size and time of change, so that the next start
does not decode them again. Of several processes the first checks, and the others wait for its result. The record may
be deleted at any time.
"""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import ImageFile
from tqdm import tqdm

from stmi_layers.training.bands import has_profile, has_spare_bands
from stmi_layers.training.depth import bits_of, read_counts
from stmi_layers.training.files import fcntl, write_whole
from stmi_layers.training.images import (
    GREY_TOLERANCE,
    PANEL_WIDTH,
    deep_message,
    opened,
    read_image,
    read_levels,
)
from stmi_layers.training.record import Panel, Source, path_of
from stmi_layers.training.settings import Range

# Number of files from which progress is shown.
SHOWN = 1000
ENTRY = re.compile(r"\S+ [1-9][0-9]{0,8} [1-9][0-9]{0,8}( [a-z]+)*")
VERSION = 4
# An image is noted as clipped when a larger share of its counts lies outside the range.
CLIPPED = 0.01


class Look(NamedTuple):
    """Result of decoding one file.

    Attributes:
        defect: why the file cannot be used; None when it can.
        size: width and height of the upright image; of one panel where a file holds several.
        notes: what reading drops or changes: "alpha", "pages", "turned", "bands", "profile", "clipped", "deep"; of a
            mask "levels", "empty", "full", "inverted".
    """

    defect: str | None
    size: tuple[int, int] = (0, 0)
    notes: tuple[str, ...] = ()


NOTHING = Look("not looked at")


def find_defect(source: Source, *, is_mask: bool = False, bounds: Range | None = None) -> str | None:
    """Find out why a file cannot be used; None when it can."""
    return look_at(source, is_mask=is_mask, bounds=bounds).defect


def look_at(source: Source, *, is_mask: bool = False, bounds: Range | None = None) -> Look:
    """Decode a file as the dataset does, and note what reading drops or changes."""
    try:
        return _look_at_mask(path_of(source)) if is_mask else _look_at_image(source, bounds)
    except OSError as error:
        return Look(f"cannot be decoded ({error.strerror or error})")
    except ValueError as error:
        said = str(error)
        ours = said.startswith(("is ", "has ", "must "))
        return Look(said if ours else f"cannot be decoded ({said})")
    except Exception as error:  # whatever a damaged file makes of a decoder: nothing in a set may stop a command
        return Look(f"cannot be decoded ({type(error).__name__}: {error})")


def _look_at_image(source: Source, bounds: Range | None) -> Look:
    path = path_of(source)
    with opened(path) as image:
        notes = _notes_of(image)
        bits, mode = bits_of(image, path), image.mode
    if bits > 8 and bounds is None:
        return Look(f"{deep_message(bits)} (mode {mode})", notes=(*notes, "deep"))
    whole = read_image(path, bounds)
    if bits > 8 and isinstance(bounds, tuple):
        low, high = bounds
        counts = read_counts(path, opened)
        notes += ("clipped",) * bool(((counts < low) | (counts > high)).mean() > CLIPPED)
    count = source.count if isinstance(source, Panel) else 1
    if isinstance(source, Panel) and whole.width != count * PANEL_WIDTH:
        return Look(f"is {whole.width} pixels wide; {count} panels of {PANEL_WIDTH} are {count * PANEL_WIDTH}")
    return Look(None, (whole.width // count, whole.height), notes)


def _notes_of(image: ImageFile.ImageFile) -> tuple[str, ...]:
    turned = image.getexif().get(0x0112, 1) not in (0, 1)
    pages = getattr(image, "n_frames", 1) > 1
    image.seek(0)
    found = {
        "alpha": image.has_transparency_data,
        "pages": pages,
        "turned": turned,
        "bands": has_spare_bands(image),
        "profile": has_profile(image),
    }
    return tuple(name for name, is_so in found.items() if is_so)


def _look_at_mask(path: Path) -> Look:
    levels = read_levels(path)
    notes: tuple[str, ...] = ()
    if path.suffix.lower() != ".npy":
        with opened(path) as image:
            notes = tuple(name for name in _notes_of(image) if name not in ("alpha", "profile"))
    least, largest = float(levels.min()), float(levels.max())
    shares = levels.dtype.kind in "bf" and largest <= 1
    middle, white = (0.5, 1) if shares else (127.5, 255)
    if 0 < largest < middle:
        named = "1 or 255" if path.suffix.lower() == ".npy" else "255"
        return Look(f"is a mask whose largest value is {largest:g}; foreground must be {named}")
    if least > middle and largest - least > GREY_TOLERANCE * white / 255:
        return Look(f"is a mask whose values lie from {least:g} to {largest:g}, all foreground; background must be 0")
    mask = levels.astype(np.float64) >= middle
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]]).mean()
    found = {
        "levels": bool(((levels != 0) & (levels != white)).any()),
        "empty": not mask.any(),
        "full": mask.all(),
        "inverted": not mask.all() and border > 0.9,
    }
    return Look(None, (mask.shape[1], mask.shape[0]), (*notes, *(name for name, is_so in found.items() if is_so)))


def check_files(
    images: Collection[Source],
    masks: Collection[Path],
    *,
    root: Path,
    ranges: Mapping[Path, Range] | None = None,
    workers: int = 0,
    quiet: bool = False,
    memory: Path | None = None,
) -> dict[Path, Look]:
    """Decode files, except those remembered as sound that have not changed since.

    Args:
        images: image files; of a file with panels, any one panel.
        masks: mask files.
        root: folder of the set; results are remembered under its path.
        ranges: counts that become black and white, by file of a deep image.
        workers: number of threads; 0 takes one per CPU.
        quiet: show no progress bar.
        memory: folder of the remembered results; `stmi-layers/checked` in the user's cache folder by default.
    """
    ranges, looks = ranges or {}, dict[Path, Look]()
    sources = {path_of(source): (source, False) for source in images} | {path: (path, True) for path in masks}
    with _memory(root, memory) as known:
        todo: dict[Path, str] = {}
        for path, (source, is_mask) in sources.items():
            stamp = _stamp(source, path, is_mask, ranges.get(path))
            looks[path] = _recall(known.get(os.fsdecode(path)), stamp) or NOTHING
            if looks[path] is NOTHING:
                todo[path] = stamp
        jobs = ((*sources[path], ranges.get(path)) for path in todo)
        found = _look_at_all(jobs, len(todo), root, workers, quiet=quiet)
        for (path, stamp), look in zip(todo.items(), found, strict=True):
            looks[path] = look
            known.pop(os.fsdecode(path), None)
            if look.defect is None:
                known[os.fsdecode(path)] = " ".join([stamp, *map(str, look.size), *look.notes])
    return looks


def _look_at_all(jobs: Iterable[Any], count: int, root: Path, workers: int, *, quiet: bool) -> Iterator[Look]:
    quiet = quiet or count < SHOWN
    # Decoders warn about unusual files, which the notes record already. All threads share the warning filters.
    with warnings.catch_warnings(), ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        warnings.simplefilter("ignore")
        found = pool.map(lambda job: look_at(job[0], is_mask=job[1], bounds=job[2]), jobs)
        yield from tqdm(found, desc=f"checking {root}", total=count, unit="file", leave=False, disable=quiet)


def _stamp(source: Source, path: Path, is_mask: bool, bounds: Range | None) -> str:
    """Return a file's state, and how it is read, as text without spaces; a check is valid while this text is equal."""
    try:
        found = os.stat(path)
    except OSError:
        return "absent"
    panels = source.count if isinstance(source, Panel) else 1
    counts = bounds if isinstance(bounds, str) or bounds is None else f"{bounds[0]!r}-{bounds[1]!r}"
    # st_ctime cannot be set by a user: it reveals a file that was replaced by another of the same size and date.
    return f"{found.st_size},{found.st_mtime_ns},{found.st_ctime_ns},{panels},{is_mask:d},{counts}"


def _recall(entry: str | None, stamp: str) -> Look | None:
    """Recall the result of a check of the file in the same state."""
    if entry is None or not entry.startswith(stamp + " "):
        return None
    _, width, height, *notes = entry.split(" ")
    return Look(None, (int(width), int(height)), tuple(notes))


@contextmanager
def _memory(root: Path, folder: Path | None) -> Iterator[dict[str, str]]:
    """Open the record of checked files of a set, for one process at a time; changes are written at the end."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    file = (folder or home / "stmi-layers" / "checked") / f"{name}.json"
    lock = None
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = os.open(file.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:
        pass  # no place for a memory: check everything
    try:
        before = _read_memory(file)
        known = dict(before)
        yield known
        if known != before:
            _write_memory(file, known)
    finally:
        if lock is not None:
            os.close(lock)


def _read_memory(file: Path) -> dict[str, str]:
    try:
        content = json.loads(file.read_bytes())
        known = content["files"] if content["version"] == [VERSION, PIL.__version__] else {}
        sound = all(ENTRY.fullmatch(entry) for entry in known.values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return known if sound else {}


def _write_memory(file: Path, known: Mapping[str, str]) -> None:
    try:
        with write_whole(file) as out:
            out.write(json.dumps({"version": [VERSION, PIL.__version__], "files": known}).encode())
    except (ValueError, OSError):
        pass  # a full or read-only disk: the next start checks again
