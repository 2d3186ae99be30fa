"""Train several variants over several seeds, and write a table and a figure: `python -m examples.compare`.

`--preset NAME` asks one of the questions of `presets.py`. Finished runs are kept and not repeated, so that an
interrupted comparison continues where it stopped, and comparisons with the same `--out` share their runs.
"""

import dataclasses
import json
import os
import shutil
import sys
import traceback
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm import tqdm

from examples.cli import EXPECTED, run
from examples.comparison_figure import draw
from examples.comparison_table import Result, as_command, as_table
from examples.stmi.recipes import recipe_arguments
from examples.stmi.settings import Settings
from examples.stmi.variants import PRESETS, VARIANTS, Preset, Row, rows_of

Key = tuple[str, int]
DOCS = Path("docs")


@dataclass(frozen=True)
class Arguments(Settings):
    """Settings shared by all runs; a variant replaces some of them."""

    preset: str = ""
    """A question of presets.py; its table and figure go to OUT/PRESET. Without it, `variants` are compared."""
    variants: tuple[str, ...] = ("baseline", "sfm", "sfm+str", "full")
    """Names of presets.py; "NAME@RGB" or "NAME@RGB,NI" restricts a variant to these modalities."""
    rows: tuple[str, ...] = ()
    """Labels of the preset's rows to make, instead of all."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of every variant with each."""
    jobs: int = 1
    """Runs at a time, each with `threads` CPU threads."""
    docs: str = ""
    """Name of the set: copy the table to docs/tables/results-NAME-PRESET.md and the figure to docs/assets/results."""


def variant_settings(arguments: Arguments, name: str, seed: int) -> Settings:
    """Settings of one run; variants that come to the same settings have one folder, that of the first of them.

    Raises:
        ValueError: when the variant is unknown.
    """
    kind, _, modalities = name.partition("@")
    if kind not in VARIANTS:
        raise ValueError(f"variants must be among {', '.join(VARIANTS)}; received {name!r}")
    shared = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)} | {"seed": seed}
    if modalities:
        shared["modalities"] = tuple(modalities.split(","))
    settings = Settings(**{**shared, **VARIANTS[kind]})
    same = next(other for other in VARIANTS if not settings.differences(Settings(**{**shared, **VARIANTS[other]})))
    folder = f"{same}@{modalities}" if modalities else same
    return dataclasses.replace(settings, out=arguments.out / "runs" / folder / f"seed-{seed}")


def preset_of(arguments: Arguments) -> Preset:
    """What the arguments ask: a preset with its rows, or the variants they name.

    Raises:
        ValueError: when there is no such preset, or no such row in it.
    """
    if not arguments.preset:
        rows = tuple(Row(name, name) for name in arguments.variants)
        return Preset("Variants", "", rows, columns=("mAP", "R1", "mAP by G", "CPU minutes"))
    if arguments.preset not in PRESETS:
        raise ValueError(f"preset must be among {', '.join(PRESETS)}; received {arguments.preset!r}")
    rows = rows_of(arguments.preset, arguments.modalities)
    labels = [row.label for row in rows]
    if unknown := sorted(set(arguments.rows) - set(labels)):
        raise ValueError(f"rows of {arguments.preset} must be among {labels}; received {unknown}")
    chosen = tuple(row for row in rows if not arguments.rows or row.label in arguments.rows)
    return PRESETS[arguments.preset]._replace(rows=chosen)


def run_one(settings: Settings, rows: list[Row]) -> list[Result]:
    """Train unless the run is finished, and say what it scores under the conditions of each row."""
    from examples.robustness import score_under
    from examples.stmi.train import train

    finished = settings.out / "metrics.json"
    if not finished.exists():
        train(settings, resume=(settings.out / "checkpoint.pt").exists(), quiet=True)
    trained = json.loads(finished.read_text())
    return [score_under(settings, row) if row.masks or row.keep else trained for row in rows]


def refuse_other_settings(settings: Settings) -> None:
    """A finished run of other settings would stand in a table under a command that did not make it."""
    record = settings.out / "settings.json"
    if not (settings.out / "metrics.json").exists() or not record.exists():
        return
    changed = settings.differences(Settings.from_dict(json.loads(record.read_text())))
    if changed:
        raise ValueError(
            f"{settings.out} was made with other settings; choose another --out or remove it:\n  "
            + "\n  ".join(changed)
        )


def run_all(arguments: Arguments, rows: tuple[Row, ...]) -> dict[Key, Result]:
    """Results by label and seed; runs that several rows need are made once.

    Raises:
        ValueError: after all runs, when some of them failed.
    """
    jobs: dict[Path, tuple[Settings, list[Row], int]] = {}
    for row in rows:
        for seed in arguments.seeds:
            settings = variant_settings(arguments, row.variant, seed)
            refuse_other_settings(settings)
            jobs.setdefault(settings.out, (settings, [], seed))[1].append(row)
    # Large blocks that glibc would return to the system after each step, and fault in again, stay with the process:
    # on the CPU that alone can double the speed. Other systems ignore it.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    results: dict[Key, Result] = {}
    failed: list[str] = []
    # Spawned, because a forked process inherits torch's thread pool in an unusable state.
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_one, settings, of_run): out for out, (settings, of_run, _) in jobs.items()}
        for future in tqdm(as_completed(futures), total=len(futures), desc="runs"):
            out = futures[future]
            _, of_run, seed = jobs[out]
            if (error := future.exception()) is None:
                results |= {(row.label, seed): of_row for row, of_row in zip(of_run, future.result(), strict=True)}
                continue
            failed.append(str(out.relative_to(arguments.out / "runs")))
            # An expected error says all there is to know in a line; of a fault of the program the traceback tells more.
            short = isinstance(error, EXPECTED)
            details = [f"{error}\n"] if short else traceback.format_exception(error)
            tqdm.write(f"{failed[-1]} failed: {''.join(details)}", file=sys.stderr, end="")
    if failed:
        raise ValueError(
            f"{len(failed)} of {len(jobs)} runs failed: {', '.join(sorted(failed))}; what they said stands above. The "
            "others are kept: when the cause is mended, the same command makes these alone"
        )
    return results


def main(arguments: Arguments) -> str:
    """Run what is missing, then write table.md, table.json and the figure into `out`, or its folder of the preset."""
    preset = preset_of(arguments)
    results = run_all(arguments, preset.rows)
    by_label = {row.label: [results[row.label, seed] for seed in arguments.seeds] for row in preset.rows}
    table = as_table(preset.axis, preset.columns, by_label)
    command = as_command(sys.argv[1:])
    text = "\n\n".join([*([preset.asks] if preset.asks else []), table, "Made by", command]) + "\n"
    folder = arguments.out / arguments.preset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.md").write_text(text)
    runs: list[dict[str, Any]] = [
        {**row._asdict(), "seed": seed, "result": results[row.label, seed]}
        for row in preset.rows
        for seed in arguments.seeds
    ]
    content = {"title": preset.title, "asks": preset.asks, "command": sys.argv[1:], "runs": runs}
    (folder / "table.json").write_text(json.dumps(content, indent=2) + "\n")
    name, count = arguments.docs or arguments.data.name, len(arguments.seeds)
    title = f"{preset.title} ({name}), mean ± standard deviation of {count} seeds"
    figures = draw(by_label, preset.panels, folder / "figure", title=title, axis=preset.axis, sweep=preset.sweep)
    if arguments.docs:
        publish(folder, f"{arguments.docs}-{arguments.preset or 'variants'}")
    print(text, *figures, sep="\n")
    return text


def publish(folder: Path, name: str) -> None:
    """Copy table and figure to where the pages of the documentation take them from."""
    for file, place in {
        "table.md": DOCS / "tables" / f"results-{name}.md",
        "figure.png": DOCS / "assets" / "results" / f"{name}.png",
        "figure.svg": DOCS / "assets" / "results" / f"{name}.svg",
    }.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / file, place)


if __name__ == "__main__":
    run(main, Arguments, __doc__, default=recipe_arguments(Arguments, sys.argv[1:]))
