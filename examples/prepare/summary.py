"""Summary of an inspection, as text and as a table of counts."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from examples.prepare.findings import Findings
from stmi_layers.training.files import write_text
from stmi_layers.training.messages import printable
from stmi_layers.training.record import Item

Row = dict[str, str | int]


def count_rows(findings: Findings, columns: Sequence[str]) -> list[Row]:
    """Count items, and images of each modality, for every combination of values of some columns."""
    groups: dict[tuple[Any, ...], list[Item]] = {}
    for split, items in findings.splits.items():
        for item in items:
            groups.setdefault((split, *(getattr(item, name) for name in columns)), []).append(item)
    return [
        {
            "split": key[0],
            **{name: "" if value is None else value for name, value in zip(columns, key[1:], strict=True)},
            "items": len(items),
            "identities": len({item.identity for item in items}),
            **{
                name: sum(item.images[position] is not None for item in items)
                for position, name in enumerate(findings.modalities)
            },
            "masks": sum(any(item.masks) for item in items),
            "captions": sum(any(item.captions) for item in items),
        }
        for key, items in sorted(groups.items(), key=lambda group: [_rank(value) for value in group[0]])
    ]


def _rank(value: object) -> tuple[bool, bool, Any]:
    """Return a sort key: numbers before names before None."""
    return value is None, isinstance(value, str), 0 if value is None else value


def write_counts(findings: Findings, path: Path) -> None:
    """Write the counts of every split, role, identity and camera as CSV."""
    rows = count_rows(findings, ["role", "identity", "camera"])
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]) if rows else ["split"])
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def describe(findings: Findings, *, limit: int = 10) -> str:
    """Format all findings as text, at most `limit` lines of each kind of problem."""
    lines = [f"layout: {findings.layout}, modalities: {', '.join(findings.modalities)}", f"rule: {findings.rule}", ""]
    lines += [*align(count_rows(findings, ["role"])), "", *align(count_rows(findings, ["role", "camera"])), ""]
    for split, items in findings.splits.items():
        scenes, views = ({getattr(item, name) for item in items} - {None} for name in ("scene", "view"))
        counts = sorted(Counter(item.identity for item in items).values()) or [0]
        lines.append(
            f"{split}: {len({item.identity for item in items})} identities with {counts[0]} to {counts[-1]} items, "
            f"median {median(counts):g}"
            + (f"; {len(scenes)} scenes" if scenes else "")
            + (f"; {len(views)} views" if views else "")
        )
    lines += findings.notes
    for kind, found in findings.problems.items():
        more = [f"  and {len(found) - limit} more"] if len(found) > limit else []
        lines += ["", f"{kind} ({len(found)}):", *(f"  {line}" for line in found[:limit]), *more]
    total = sum(map(len, findings.problems.values()))
    verdict = f"{total} problem{'s' * (total > 1)}" if total else "no problem found"
    return "\n".join(map(printable, [*lines, "", verdict]))


def align(rows: Sequence[Row]) -> list[str]:
    """Format rows as a table with a header, numbers to the right."""
    if not rows:
        return []
    table = [list(map(str, rows[0])), *([str(value) for value in row.values()] for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in table]
