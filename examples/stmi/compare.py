"""Train several variants over several seeds and write one table: `python -m examples.stmi.compare --data DIR ...`.

Finished runs are kept and not repeated, so that an interrupted comparison continues where it stopped.
"""

import dataclasses
import json
import os
import shlex
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from tqdm import tqdm

from examples.stmi.command import run
from examples.stmi.recipes import recipe_arguments
from examples.stmi.settings import Settings

BASELINE = {"masks": "none", "reallocation": False}

VARIANTS: dict[str, dict[str, Any]] = {
    "baseline": BASELINE,
    "sfm": {"reallocation": False},
    "sfm+str": {"fusion": "none"},
    "full": {},
    "full-without-sfm": {"masks": "none"},
    "full-concatenation": {"fusion": "concatenation"},
    "full-mlp": {"fusion": "mlp"},
    "full-self-attention": {"fusion": "self-attention"},
    "sfm-ones": {"reallocation": False, "masks": "ones"},
    "sfm-shuffled": {"reallocation": False, "masks": "shuffled"},
    "blank": {"reallocation": False, "masks": "blank"},
    "blank+sfm": {"reallocation": False, "masks": "blank+given"},
    "cnn": {"reallocation": False, "backbone": "cnn", "masks": "none"},
    "cnn-blank": {"reallocation": False, "backbone": "cnn", "masks": "blank"},
}


@dataclass(frozen=True)
class Arguments(Settings):
    """Settings shared by all runs; a variant replaces some of them."""

    variants: tuple[str, ...] = ("baseline", "sfm", "sfm+str", "full")
    """Names of the table in this file; "NAME@RGB" or "NAME@RGB,NI" restricts a variant to these modalities."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """One run of every variant with each."""
    jobs: int = 1
    """Runs at a time, each with `threads` CPU threads."""


def variant_settings(arguments: Arguments, name: str, seed: int) -> Settings:
    """Settings of one run.

    Raises:
        ValueError: when the variant is unknown.
    """
    kind, _, modalities = name.partition("@")
    if kind not in VARIANTS:
        raise ValueError(f"variants must be among {', '.join(VARIANTS)}; received {name!r}")
    shared = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(Settings)}
    changes = {"seed": seed, "out": arguments.out / "runs" / name / f"seed-{seed}", **VARIANTS[kind]}
    if modalities:
        changes["modalities"] = tuple(modalities.split(","))
    return Settings(**{**shared, **changes})


def run_one(settings: Settings) -> dict[str, Any]:
    """Train unless the run is finished; return what its metrics.json says."""
    from examples.stmi.train import train

    finished = settings.out / "metrics.json"
    if not finished.exists():
        train(settings, resume=(settings.out / "checkpoint.pt").exists(), quiet=True)
    return json.loads(finished.read_text())


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


def main(arguments: Arguments) -> str:
    """Run what is missing, then write table.md and table.json into `arguments.out`."""
    runs = {
        (name, seed): variant_settings(arguments, name, seed) for name in arguments.variants for seed in arguments.seeds
    }
    for settings in runs.values():
        refuse_other_settings(settings)
    results: dict[tuple[str, int], dict[str, Any]] = {}
    # Large blocks that glibc would return to the system after each step, and fault in again, stay with the process:
    # on the CPU that alone can double the speed. Other systems ignore it.
    os.environ |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**40)}
    # Spawned, because a forked process inherits torch's thread pool in an unusable state.
    with ProcessPoolExecutor(arguments.jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_one, settings): key for key, settings in runs.items()}
        for future in tqdm(as_completed(futures), total=len(futures), desc="runs"):
            results[futures[future]] = future.result()
    table = as_table(arguments, results)
    command = "python -m examples.stmi.compare " + shlex.join(sys.argv[1:])
    text = f"{table}\n\nMade by `{command}`.\n"
    (arguments.out / "table.md").write_text(text)
    content = {"command": command, "runs": [{"variant": n, "seed": s, **r} for (n, s), r in sorted(results.items())]}
    (arguments.out / "table.json").write_text(json.dumps(content, indent=2) + "\n")
    print(text)
    return text


def as_table(arguments: Arguments, results: dict[tuple[str, int], dict[str, Any]]) -> str:
    """Markdown: mean and standard deviation over the seeds, in percent, of the headline descriptor and of G."""
    lines = ["| variant | by | mAP | R1 | mAP by G | CPU minutes |", "|---|---|---|---|---|---|"]
    for name in arguments.variants:
        of_seeds = [results[name, seed] for seed in arguments.seeds]
        headline = of_seeds[0]["headline"]
        columns = [spread([100 * run["descriptors"][headline][metric] for run in of_seeds]) for metric in ("mAP", "R1")]
        columns.append(spread([100 * run["descriptors"]["G"]["mAP"] for run in of_seeds]))
        minutes = statistics.mean(run["training_cpu_minutes"] for run in of_seeds)
        lines.append(f"| {name} | {headline} | " + " | ".join(columns) + f" | {minutes:.1f} |")
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


if __name__ == "__main__":
    run(main, Arguments, __doc__, default=recipe_arguments(Arguments, sys.argv[1:]))
