"""Train variants of a method over several seeds, and write a table and a figure: `python -m examples.compare METHOD`.

With `--preset NAME`, the runs answer one of the questions in the method's `variants.py`. Finished runs are kept and not
repeated: an interrupted comparison continues where it stopped, and comparisons with the same `--out` share their runs.

Without METHOD, all methods are compared under one protocol: `python -m examples.compare --preset methods`.
"""

import json
import os
import shutil
import sys
import traceback
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from examples import cli
from examples.comparison_table import as_command, as_page, as_table, column_of
from examples.methods import load_method
from examples.preset import Column, Preset, Result, Row
from examples.robustness import finished, score_under
from examples.run import Run, run_differences, run_of, settings_of
from stmi_layers.training.files import write_text
from stmi_layers.training.schedule import check_not_negative

Key = tuple[str, int]
Job = tuple[Run, list[Row]]
DOCS = Path("docs")


@dataclass(frozen=True)
class Options:
    """Comparison. The flags in the groups below are shared by all runs; a variant replaces some of them."""

    out: Path
    """Folder of the comparison; its runs are in `runs`."""
    preset: str = ""
    """Question in the method's variants.py, whose table and figure go to OUT/PRESET. By default `variants` are
    compared."""
    variants: tuple[str, ...] = ()
    """Names of the method's variants; all usual variants by default. "NAME@RGB" or "NAME@RGB,NI" restricts a variant to
    these modalities."""
    rows: tuple[str, ...] = ()
    """Labels of the rows of the preset to run; all rows by default."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; every variant is run once with each seed."""
    jobs: int = 1
    """Number of runs at a time, each with `threads` CPU threads."""
    top: float = 0.0
    """Upper end of the mAP axis of the figure, in percent, so that figures of two sets can be compared by eye; 0 fits
    the axis to the numbers."""
    docs: str = ""
    """Name of the set: copy the table to docs/tables/results-NAME-PRESET.md and the figure to docs/assets/results."""

    def __post_init__(self) -> None:
        check_not_negative("top", self.top)


class Offer:
    """Variants and presets of a method; a method without `variants.py` has the one variant "default"."""

    def __init__(self, method: str) -> None:
        module = load_method(method).part("variants")
        self.variants: dict[str, dict[str, Any]] = getattr(module, "VARIANTS", {"default": {}})
        self.presets: dict[str, Preset] = getattr(module, "PRESETS", {})
        self.columns: dict[str, Column] = getattr(module, "COLUMNS", {})
        self.usual: tuple[str, ...] = getattr(module, "USUAL", tuple(self.variants))


def variant_run(run: Run, options: Options, name: str, seed: int) -> tuple[Run, Path]:
    """Return a run and its folder; variants with equal settings share the folder of the first such variant.

    Raises:
        ValueError: when the variant is unknown.
    """
    variants = Offer(run.method).variants
    kind, _, modalities = name.partition("@")
    if kind not in variants:
        raise ValueError(f"variants must be among {', '.join(variants)}; received {name!r}")
    shared = run.changed({"seed": seed} | ({"modalities": tuple(modalities.split(","))} if modalities else {}))
    asked = shared.changed(variants[kind])
    settings = settings_of(asked)
    same = next(other for other, values in variants.items() if _settings(shared, values) == settings)
    folder = f"{same}@{modalities}" if modalities else same
    return asked, options.out / "runs" / folder / f"seed-{seed}"


def _settings(shared: Run, values: dict[str, Any]) -> dict[str, Any] | None:
    """Return the settings of a variant; None if the variant does not fit the shared settings."""
    try:
        return settings_of(shared.changed(values))
    except ValueError:
        return None


def preset_of(run: Run, options: Options) -> Preset:
    """Return the comparison that the options ask for: a preset with its rows, or the named variants.

    Raises:
        ValueError: when there is no such preset, or no such row in it.
    """
    offer = Offer(run.method)
    if not options.preset:
        rows = tuple(Row(name, name) for name in options.variants or offer.usual)
        return Preset("Variants", "", rows, columns=("mAP", "R1", "CPU minutes"))
    if options.preset not in offer.presets:
        raise ValueError(f"preset must be among {', '.join(offer.presets)}; received {options.preset!r}")
    preset = offer.presets[options.preset]
    rows = preset.rows_of(run.data.modalities)
    labels = [row.label for row in rows]
    if unknown := sorted(set(options.rows) - set(labels)):
        raise ValueError(f"rows of {options.preset} must be among {labels}; received {unknown}")
    return preset._replace(rows=tuple(row for row in rows if not options.rows or row.label in options.rows))


def run_one(run: Run, out: Path, rows: list[Row]) -> list[Result]:
    """Train unless the run is finished, and return its scores under the conditions of each row."""
    from examples.train import train

    if (result := finished(out / "metrics.json")) is None:
        train(run, out, resume=(out / "checkpoint.pt").exists())
        result = finished(out / "metrics.json")
    if result is None:
        raise ValueError(f"{out / 'metrics.json'} cannot be read after the run; check the disk")
    checkpoint = out / "checkpoint.pt"
    return [score_under(checkpoint, row, run.machine) if row.is_condition else result for row in rows]


def refuse_other_settings(run: Run, out: Path) -> None:
    """Refuse a folder whose run has other settings, because the table names the command that made its runs."""
    try:
        records = json.loads((out / "settings.json").read_text())
    except (OSError, ValueError):
        return
    if changed := run_differences(run_of(records), run):
        raise ValueError(
            f"{out} was made with other settings; choose another --out or remove it:\n  " + "\n  ".join(changed)
        )


def run_all(run: Run, options: Options, rows: tuple[Row, ...]) -> dict[Key, Result]:
    """Return results by label and seed; a run that several rows need is made once."""
    jobs: dict[Path, Job] = {}
    seeds: dict[Path, int] = {}
    for row in rows:
        for seed in options.seeds:
            asked, out = variant_run(run, options, row.variant, seed)
            jobs.setdefault(out, (asked, []))[1].append(row)
            seeds[out] = seed
    return {
        (row.label, seeds[out]): result
        for out, results in run_jobs(jobs, options.jobs, options.out / "runs").items()
        for row, result in zip(jobs[out][1], results, strict=True)
    }


def run_jobs(jobs: Mapping[Path, Job], workers: int, root: Path) -> dict[Path, list[Result]]:
    """Return results of runs by their folder, one per row; finished runs are not repeated.

    Args:
        jobs: run and the rows that need it, by folder.
        workers: number of runs at a time.
        root: folder of all runs.

    Raises:
        ValueError: before all runs, when one was made with other settings; after all runs, when some of them failed.
    """
    for out, (run, _) in jobs.items():
        refuse_other_settings(run, out)
    # The process keeps large blocks that glibc would return to the system after each step and fault in again. On the
    # CPU this alone can double the speed; other systems ignore the variables.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    results: dict[Path, list[Result]] = {}
    failed: list[str] = []
    # Spawned, because a forked process inherits torch's thread pool in an unusable state.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_one, run.quiet(), out, rows): out for out, (run, rows) in jobs.items()}
        for future in tqdm(as_completed(futures), total=len(futures), desc="runs"):
            out = futures[future]
            if (error := future.exception()) is None:
                results[out] = future.result()
                continue
            failed.append(str(out.relative_to(root)))
            # The message of an expected error is enough; a fault of the program needs its traceback.
            short = isinstance(error, cli.EXPECTED)
            details = [f"{error}\n"] if short else traceback.format_exception(error)
            tqdm.write(f"{failed[-1]} failed: {''.join(details)}", file=sys.stderr, end="")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(jobs)} runs failed: {', '.join(sorted(failed))}; their messages are above. The "
            "other runs are kept: after the cause is fixed, the same command makes only these"
        )
    return results


def main(run: Run, options: Options) -> str:
    """Make missing runs, then write table.md, table.json and the figure into `out`, or its folder of the preset."""
    preset = preset_of(run, options)
    own = Offer(run.method).columns
    columns = {name: column_of(name, own) for name in preset.columns}
    panels = [{name: column_of(name, own) for name in panel} for panel in preset.panels]
    results = run_all(run, options, preset.rows)
    by_label = {row.label: [results[row.label, seed] for seed in options.seeds] for row in preset.rows}
    text = as_page(preset.asks, as_table(preset.axis, columns, by_label), as_command(sys.argv[1:]))
    folder = options.out / options.preset
    write_text(folder / "table.md", text)
    runs: list[dict[str, Any]] = [
        {**row._asdict(), "seed": seed, "result": results[row.label, seed]}
        for row in preset.rows
        for seed in options.seeds
    ]
    content = {"title": preset.title, "asks": preset.asks, "command": sys.argv[1:], "runs": runs}
    write_text(folder / "table.json", json.dumps(content, indent=2) + "\n")
    from examples.comparison_figure import draw

    name, count = (options.docs or run.data.root.name).replace("-", " "), len(options.seeds)
    title = f"{preset.title} ({name}), mean ± standard deviation of {count} seeds"
    shown = {"title": title, "axis": preset.axis, "sweep": preset.sweep, "top": options.top}
    figures = draw(by_label, panels, folder / "figure", **shown)
    if options.docs:
        publish(folder, f"{options.docs}-{options.preset or 'variants'}")
    print(text, *figures, sep="\n")
    return text


def publish(folder: Path, name: str) -> None:
    """Copy table and figure into the folders of the documentation."""
    for file, place in {
        "table.md": DOCS / "tables" / f"results-{name}.md",
        "figure.svg": DOCS / "assets" / "results" / f"{name}.svg",
    }.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / file, place)


if __name__ == "__main__" and [*sys.argv[1:], "-"][0].startswith("-"):
    from examples import compare_methods

    compare_methods.command()
elif __name__ == "__main__":
    cli.run_method(main, Options, "python -m examples.compare", __doc__)
