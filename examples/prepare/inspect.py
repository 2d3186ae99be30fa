"""Inspect a set before training on it: `python -m examples.prepare.inspect PATH`.

Prints the content of a set, the rule that recognised it and its problems, and writes `counts.csv`, a contact
sheet and, where images have more than 8 bits, `ranges.json`. The exit status is 1 when anything is missing, duplicated,
unreadable, passed over, mismatched or contradictory.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import tyro

from examples.cli import errors_as_a_line
from examples.prepare.contact_sheet import draw_contact_sheet
from examples.prepare.file_checks import inspect_files, suggest_ranges
from examples.prepare.findings import Findings, find_all
from examples.prepare.summary import describe, write_counts
from stmi_layers.training.files import write_text
from stmi_layers.training.settings import Range, check_ranges


def inspect_set(
    root: Path,
    *,
    modalities: tuple[str, ...] = (),
    ranges: Mapping[str, Range] | None = None,
    workers: int = 0,
    quiet: bool = False,
) -> Findings:
    """Read all splits of a set and check all files.

    Args:
        root: folder of the set, or its manifest.
        modalities: names of modalities to recognise besides the usual names.
        ranges: counts that become black and white in deep images, by modality.
        workers: number of threads that decode; 0 takes one per CPU.
        quiet: show no progress bar.
    """
    findings = find_all(root, modalities)
    of_files = inspect_files(
        findings.splits, findings.modalities, findings.base, ranges=ranges, workers=workers, quiet=quiet
    )
    for kind, lines in of_files.items():
        (findings.notes.extend(lines) if kind == "notes" else findings.add(kind, *lines))
    findings.ranges = suggest_ranges(findings.splits, findings.modalities)
    if findings.ranges:
        findings.notes.append(
            "images have more than 8 bits per channel; 0.1 % and 99.9 % of their counts lie below the bounds of "
            f"--ranges {as_words(findings.ranges)}"
        )
    return findings


def as_words(ranges: Mapping[str, Range]) -> str:
    """Format ranges for the command line.

    >>> as_words({"TI": (7012.0, 9411.5), "NI": "image"})
    'TI 7012 9411.5 NI image'
    """
    return " ".join(
        f"{name} {bounds if isinstance(bounds, str) else ' '.join(f'{count:.10g}' for count in bounds)}"
        for name, bounds in ranges.items()
    )


def inspect(
    path: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    modalities: tuple[str, ...] = (),
    ranges: dict[str, Range] = {},  # noqa: B006 - never changed
    workers: int = 0,
    limit: int = 10,
) -> Findings:
    """Print the content of a set and its problems; exit with status 1 if there is a problem.

    Args:
        path: Folder of the set in any layout, or its manifest.
        out: Folder of counts.csv, contact_sheet.png and ranges.json; runs/inspect/NAME by default.
        modalities: Names of modalities to recognise besides usual names such as RGB, NI, TI, vis and thermal.
        ranges: Counts that become black and white above 8 bits, such as TI 7012 9411; TI image for those of each image.
        workers: Number of threads that decode images; 0 takes one per CPU.
        limit: Largest number of lines printed for each kind of problem.
    """
    check_ranges(ranges)
    findings = inspect_set(path, modalities=modalities, ranges=ranges, workers=workers)
    folder = out or Path("runs") / "inspect" / path.resolve().name
    write_counts(findings, folder / "counts.csv")
    draw_contact_sheet(findings.splits, findings.modalities, folder / "contact_sheet.png", ranges=ranges)
    written = [folder / "counts.csv", folder / "contact_sheet.png"]
    if findings.ranges:
        written.append(folder / "ranges.json")
        write_text(written[-1], json.dumps(findings.ranges, indent=2) + "\n")
    print(describe(findings, limit=limit), *written, sep="\n")
    if findings.problems:
        sys.exit(1)
    return findings


def main() -> None:
    """Run the command."""
    with errors_as_a_line():
        tyro.cli(inspect, prog="python -m examples.prepare.inspect")


if __name__ == "__main__":
    main()
