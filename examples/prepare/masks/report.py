"""Report of a run: a JSON file and a table."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from tqdm import tqdm

from examples.prepare.masks import quality as limits
from examples.prepare.masks.files import read_note
from examples.prepare.masks.make import VOTE, Settings, State, Task
from examples.prepare.masks.quality import Quality, find_doubts, measure
from examples.prepare.masks.regions import intersection_over_union, stretch_mask
from stmi_layers.training.files import write_text
from stmi_layers.training.images import read_mask


class Entry(NamedTuple):
    """One mask on disk.

    Attributes:
        task: item and path of the mask.
        method: name of the method; "given" if the mask has no note.
        quality: measurements of the mask.
        doubts: reasons and strengths, see `find_doubts`.
        overlap: intersection over union with the given mask of the data set, as a mean over masks per modality; None
            without a given mask.
    """

    task: Task
    method: str
    quality: Quality
    doubts: dict[str, float]
    overlap: float | None


def read_entries(tasks: Sequence[Task], settings: Settings) -> list[Entry]:
    """Read the masks of all items, whether made now or before."""
    progress = tqdm(tasks, desc="reading masks", unit="item", leave=False, disable=len(tasks) < 1000)
    return [_read(task, settings) for task in progress]


def _read(task: Task, settings: Settings) -> Entry:
    note, mask = read_note(task.path), read_mask(task.path)
    measured = measure(mask) if note is None else note.quality
    given = task.item.masks
    if settings.source != VOTE:
        index = settings.modalities.index(settings.source)
        given = given[index : index + 1]
    others = {path for path in given if path is not None and path != task.path and read_note(path) is None}
    overlaps = []
    for path in sorted(others):
        truth = read_mask(path)
        overlaps.append(intersection_over_union(stretch_mask(mask, (truth.shape[0], truth.shape[1])), truth))
    doubts = find_doubts(measured)
    return Entry(task, "given" if note is None else note.method, measured, doubts, mean(overlaps) if overlaps else None)


def rank_doubtful(entries: Sequence[Entry]) -> list[Entry]:
    """List doubtful masks: the strongest single doubt first, then the most doubts, then by name."""
    doubtful = [entry for entry in entries if entry.doubts]
    return sorted(doubtful, key=lambda one: (-max(one.doubts.values()), -len(one.doubts), one.task.item.name))


def summarise(entries: Sequence[Entry]) -> dict[str, Any]:
    """Compute counts and means of a split."""
    states: Counter[State] = Counter(entry.task.state for entry in entries)
    reasons = Counter(reason for entry in entries for reason in entry.doubts)
    overlaps = [entry.overlap for entry in entries if entry.overlap is not None]
    incomplete = sum(None in entry.task.item.images for entry in entries)
    return {
        "items": len(entries),
        "made": states["made"],
        "kept": states["kept"],
        "given": states["given"],
        "lacking a modality": incomplete,
        "mean area": mean(entry.quality.area for entry in entries),
        "mean agreement": _mean_known([entry.quality.agreement for entry in entries]),
        "mean stability": _mean_known([entry.quality.stability for entry in entries]),
        "touching the border": sum(entry.quality.border > 0 for entry in entries),
        "doubtful": sum(bool(entry.doubts) for entry in entries),
        "doubts": dict(sorted(reasons.items())),
        "IoU with given masks": {"masks": len(overlaps), "mean": mean(overlaps), "median": median(overlaps)}
        if overlaps
        else None,
    }


def _mean_known(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def write_report(path: Path, entries: Sequence[Entry], settings: Settings, method: str) -> dict[str, Any]:
    """Write the report, and return it as read back from the file."""
    splits = {split: [entry for entry in entries if entry.task.split == split] for split in settings.splits}
    content = {
        "method": method,
        "settings": {
            name: str(value) if isinstance(value, Path) else value for name, value in asdict(settings).items()
        },
        "doubtful when": {
            "empty": "no foreground",
            "small": f"area < {limits.LEAST_AREA}",
            "fills the image": f"area > {limits.MOST_AREA}",
            "touches the border": f"border > {limits.MOST_BORDER}",
            "modalities disagree": f"agreement < {limits.LEAST_AGREEMENT}",
            "unstable": f"stability < {limits.LEAST_STABILITY}",
            "scattered": f"removed > {limits.MOST_REMOVED}",
            "nothing found": "no thing of the name in a modality",
            "several found": "more than one thing of the name in a modality",
        },
        "splits": {split: summarise(those) for split, those in splits.items()},
        "items": [_as_json(entry, settings) for entry in entries],
    }
    text = json.dumps(content, indent=1)
    write_text(path, text)
    return json.loads(text)


def _as_json(entry: Entry, settings: Settings) -> dict[str, Any]:
    images = zip(settings.modalities, entry.task.item.images, strict=True)
    return {
        "item": entry.task.item.name,
        "split": entry.task.split,
        "state": entry.task.state,
        "method": entry.method,
        "missing": [modality for modality, source in images if source is None],
        **asdict(entry.quality),
        "doubts": entry.doubts,
        "IoU with given masks": entry.overlap,
    }


def table(report: dict[str, Any]) -> str:
    """Format the report's summary as text, under the name of the method."""
    columns = ("items", "made", "kept", "given", "mean area", "mean agreement", "touching the border", "doubtful")
    rows = [["split", *columns, "IoU mean", "median"]]
    for split, summary in report["splits"].items():
        overlap = summary["IoU with given masks"] or {}
        values = [*(summary[column] for column in columns), overlap.get("mean"), overlap.get("median")]
        rows.append([split, *(_show(value) for value in values)])
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    doubts = [
        f"doubts in {split}: " + ", ".join(f"{reason} {count}" for reason, count in summary["doubts"].items())
        for split, summary in report["splits"].items()
        if summary["doubts"]
    ]
    return "\n".join([report["method"], *lines, *doubts])


def _show(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
