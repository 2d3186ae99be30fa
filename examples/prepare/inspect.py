"""Look at a set before training on it: `python -m examples.prepare.inspect PATH`.

Prints what it holds and what is wrong with it, and writes `counts.csv` and a contact sheet. Every file is opened once,
a few at a time. The exit status is 1 when anything is missing, duplicated, unreadable, mismatched or contradictory.
"""

import csv
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Annotated

import tyro

from examples.cli import errors_as_a_line
from examples.prepare.contact_sheet import draw_contact_sheet
from examples.prepare.file_checks import check_files
from stmi_layers.training.annotations import read_captions, read_columns
from stmi_layers.training.layouts import find_layout, list_splits, shorten, split_folders
from stmi_layers.training.protocol import protocol_for
from stmi_layers.training.record import Item
from stmi_layers.training.splits import find_items


@dataclass
class Findings:
    """What an inspection found.

    Attributes:
        layout: name of the layout.
        modalities: all there are in some split.
        splits: the items of each split that could be read.
        problems: what has to be mended, by kind.
        notes: what is worth knowing.
    """

    layout: str
    modalities: list[str]
    splits: dict[str, list[Item]] = field(default_factory=dict)
    problems: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, kind: str, *found: str) -> None:
        if found:
            self.problems.setdefault(kind, []).extend(found)


def inspect_set(root: Path, *, workers: int = 0, quiet: bool = False) -> Findings:
    """Read all splits of a set and check all files.

    Args:
        root: the set.
        workers: threads that decode, 0 for as many as there are CPUs.
        quiet: without a progress bar.
    """
    layout, base = find_layout(root)
    of_split = {
        split: {name for _, folder in split_folders(layout, base, split) for name in layout.list_modalities(folder)}
        for split in list_splits(layout, base)
    }
    known = dict.fromkeys(name for names in of_split.values() for name in sorted(names))
    preferred = [name for name in ("RGB", "NI", "TI") if name in known]
    findings = Findings(layout.name, preferred + [name for name in known if name not in preferred])
    for split, names in of_split.items():
        lacking = [name for name in findings.modalities if name not in names]
        findings.add("mismatched", *(f"{split}: no modality {name}, which another split has" for name in lacking))
        _read(findings, root, split, [name for name in findings.modalities if name in names])
    for split, items in findings.splits.items():
        _find_missing(findings, split, items)
    _compare_splits(findings)
    for kind, found in check_files(findings.splits, root, workers=workers, quiet=quiet).items():
        (findings.notes.extend(found) if kind == "notes" else findings.add(kind, *found))
    return findings


def _read(findings: Findings, root: Path, split: str, modalities: Sequence[str]) -> None:
    """Add the items of a split; what contradicts itself is named, and what can be read is kept."""
    try:
        items = find_items(root, split, modalities)
    except (ValueError, FileNotFoundError) as error:
        findings.add("contradictory", str(error))
        return
    names = sorted({item.name for item in items})
    captions, columns = dict[str, str](), dict[str, dict[str, str]]()
    try:
        filed = [split, *dict.fromkeys(item.role for item in items if item.role not in ("both", split))]
        captions = read_captions(root, filed, modalities, names, required=False)
        columns = read_columns(root, names)
    except ValueError as error:
        findings.add("contradictory", str(error))
    found = (item.images for item in items)
    aligned = [dict(zip(modalities, images, strict=True)) for images in found]
    findings.splits[split] = [
        replace(
            item,
            images=tuple(images.get(name) for name in findings.modalities),
            masks=tuple(dict(zip(modalities, item.masks, strict=True)).get(name) for name in findings.modalities),
            caption=captions.get(item.name),
            columns={**item.columns, **columns.get(item.name, {})},
        )
        for item, images in zip(items, aligned, strict=True)
    ]


def _find_missing(findings: Findings, split: str, items: list[Item]) -> None:
    """Images that another modality has; masks and captions where some item of the split has one."""
    for position, modality in enumerate(findings.modalities):
        lacking = [item.name for item in items if item.images[position] is None]
        if len(lacking) < len(items):
            findings.add("missing", *(f"{split}: no {modality} image of {name}" for name in lacking))
    for item in items if any(any(item.masks) for item in items) else ():
        pairs = zip(findings.modalities, item.images, item.masks, strict=True)
        if bare := [name for name, image, mask in pairs if image is not None and mask is None]:
            findings.add("missing", f"{split}: no mask of {item.name} for {', '.join(bare)}")
    lacking = [item.name for item in items if item.caption is None]
    if len(lacking) < len(items):
        findings.add("missing", *(f"{split}: no caption of {name}" for name in lacking))


def _compare_splits(findings: Findings) -> None:
    train = {item.identity for item in findings.splits.get("train", [])}
    train = train or {item.identity for name, items in findings.splits.items() if "train" in name for item in items}
    test = findings.splits.get("test", [])
    if shared := sorted(train & {item.identity for item in test}):
        findings.notes.append(f"{len(shared)} identities are in train and in test: {shorten(map(str, shared))}")
    captioned = {split: any(item.caption is not None for item in items) for split, items in findings.splits.items()}
    if any(captioned.values()):
        without = [split for split, some in captioned.items() if not some]
        findings.notes += [f"{split} has no captions, and another split has" for split in without]
    if test:
        findings.notes.append(f"protocol: {protocol_for(test).describe(test)}")


def count_rows(findings: Findings, columns: Sequence[str]) -> list[dict[str, str | int]]:
    """How many items, and images of each modality, there are for every combination of some columns of the items."""
    groups: dict[tuple[str | int, ...], list[Item]] = {}
    for split, items in findings.splits.items():
        for item in items:
            groups.setdefault((split, *(getattr(item, name) for name in columns)), []).append(item)
    return [
        {
            "split": key[0],
            **dict(zip(columns, key[1:], strict=True)),
            "items": len(items),
            "identities": len({item.identity for item in items}),
            **{
                name: sum(item.images[position] is not None for item in items)
                for position, name in enumerate(findings.modalities)
            },
            "masks": sum(any(item.masks) for item in items),
            "captions": sum(item.caption is not None for item in items),
        }
        for key, items in sorted(groups.items())
    ]


def describe(findings: Findings, *, limit: int = 10) -> str:
    """All of it as text, at most `limit` lines of each kind of problem."""
    lines = [f"layout: {findings.layout}, modalities: {', '.join(findings.modalities)}", ""]
    lines += [*align(count_rows(findings, ["role"])), "", *align(count_rows(findings, ["role", "camera"])), ""]
    for split, items in findings.splits.items():
        scenes, views = ({getattr(item, name) for item in items} - {None} for name in ("scene", "view"))
        counts = sorted(Counter(item.identity for item in items).values())
        lines.append(
            f"{split}: {len(counts)} identities with {counts[0]} to {counts[-1]} items, median {median(counts):g}"
            + (f"; {len(scenes)} scenes" if scenes else "")
            + (f"; {len(views)} views" if views else "")
        )
    lines += findings.notes
    for kind, found in findings.problems.items():
        more = [f"  and {len(found) - limit} more"] if len(found) > limit else []
        lines += ["", f"{kind} ({len(found)}):", *(f"  {line}" for line in found[:limit]), *more]
    total = sum(map(len, findings.problems.values()))
    return "\n".join([*lines, "", f"{total} problems" if total else "no problem found"])


def align(rows: Sequence[dict[str, str | int]]) -> list[str]:
    """Rows as a table with a header, numbers to the right."""
    if not rows:
        return []
    table = [list(map(str, rows[0])), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]


def inspect(
    path: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    workers: int = 0,
    limit: int = 10,
) -> Findings:
    """Say what a set holds and what is wrong with it; exit with status 1 when anything is.

    Args:
        path: The set, in any layout.
        out: Folder for counts.csv and contact_sheet.png; runs/inspect/NAME by default.
        workers: Threads that decode; 0 takes all CPUs.
        limit: Lines printed of each kind of problem.
    """
    findings = inspect_set(path, workers=workers)
    folder = out or Path("runs") / "inspect" / path.resolve().name
    folder.mkdir(parents=True, exist_ok=True)
    rows = count_rows(findings, ["role", "identity", "camera"])
    with (folder / "counts.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["split"])
        writer.writeheader()
        writer.writerows(rows)
    sheet = draw_contact_sheet(findings.splits, findings.modalities, folder / "contact_sheet.png")
    print(describe(findings, limit=limit), folder / "counts.csv", sheet, sep="\n")
    if findings.problems:
        sys.exit(1)
    return findings


def main() -> None:
    with errors_as_a_line():
        tyro.cli(inspect, prog="python -m examples.prepare.inspect")


if __name__ == "__main__":
    main()
