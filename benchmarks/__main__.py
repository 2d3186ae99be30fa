"""Time the layers against what they replace, and compare the results with the targets.

The results go to `runs/benchmarks-DEVICE.json`; `--docs` also writes the tables and plots of docs/benchmarks.md. With
`--check` the command fails when a target is missed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks import (
    alignment,
    attention,
    backbones,
    checks,
    compiled,
    data,
    deformable,
    experts,
    hypergraph,
    losses,
    masked,
    metrics,
    model,
    older,
    permutation,
    profiles,
    reallocation,
    report,
    search,
    selection,
)
from benchmarks.machine import describe
from benchmarks.runner import Comparison, Measured, run

TOPICS = {
    "backbones": backbones,
    "compiled": compiled,
    "model": model,
    "data": data,
    "checks": checks,
    "attention": attention,
    "older": older,
    "reallocation": reallocation,
    "experts": experts,
    "permutation": permutation,
    "masked": masked,
    "hypergraph": hypergraph,
    "deformable": deformable,
    "selection": selection,
    "losses": losses,
    "alignment": alignment,
    "metrics": metrics,
    "search": search,
}


def main() -> int:
    options = parse()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.processor_time else time.perf_counter
    results, start = [], time.perf_counter()
    for topic in options.only or TOPICS:
        if needs_process(topic, options.device):
            records = in_process(topic, options)
            print(*map(report.line, records), sep="\n", flush=True)
            results += records
            continue
        for comparison in TOPICS[topic].comparisons(options.device):
            began = time.perf_counter()
            measured = run(comparison, options.device, seconds=options.seconds, turns=options.turns, clock=clock)
            results.append(as_record(topic, comparison, measured))
            print(f"{report.line(results[-1])}  [{time.perf_counter() - began:.0f} s]", flush=True)
    found = {"command": spelled(sys.argv[1:]), "machine": describe(options.device), "results": results}
    out = options.out or Path("runs") / f"benchmarks-{options.device}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(found, indent=1))
    print(f"\n{report.table(results)}\n\n{len(results)} rows in {time.perf_counter() - start:.0f} s, written: {out}")
    if options.docs:
        report.write_docs(found, options.device, report.DOCS)
        if options.device == "cpu" and not options.only:
            profiles.draw(report.DOCS)
    missed = report.missed(results)
    if options.check and missed:
        print("\nmissed targets:\n" + "\n".join(missed), file=sys.stderr)
        return 1
    return 0


def needs_process(topic: str, device: str) -> bool:
    """Tell whether a topic needs variables of the environment that this process was started without."""
    wanted: dict[str, str] = getattr(TOPICS[topic], "ENVIRONMENT", {})
    return device == "cpu" and any(os.environ.get(name) != value for name, value in wanted.items())


def in_process(topic: str, options: argparse.Namespace) -> list[dict]:
    """Measure a topic in a process that has its variables from the start, and return its records."""
    words = ["--only", topic, "--seconds", str(options.seconds), "--turns", str(options.turns)]
    words += ["--threads", str(options.threads)] if options.threads else []
    words += ["--processor-time"] if options.processor_time else []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "results.json")
        command = [sys.executable, "-m", "benchmarks", *words, "--out", str(out)]
        environment = {**os.environ, **TOPICS[topic].ENVIRONMENT}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        return json.loads(out.read_text())["results"]


def spelled(words: list[str]) -> str:
    """Return the command for a page: without `--out`, which names a file of this machine."""
    kept = list(words)
    for place, word in reversed(list(enumerate(words))):
        if word == "--out" or word.startswith("--out="):
            del kept[place : place + (2 if word == "--out" else 1)]
    return " ".join(["python -m benchmarks", *kept])


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=TOPICS, help="topics to measure; all by default")
    parser.add_argument("--device", default="cpu", help="device: cpu (default) or cuda")
    parser.add_argument("--threads", type=int, help="torch threads for rows that do not fix their number")
    helped = "measure processor time instead of wall-clock time: for one thread, on a machine that is busy otherwise"
    parser.add_argument("--processor-time", action="store_true", help=helped)
    parser.add_argument(
        "--seconds", type=float, default=1.0, help="seconds for the turns of one comparison; 1 by default"
    )
    parser.add_argument("--turns", type=int, default=30, help="largest number of turns of a comparison; 30 by default")
    parser.add_argument("--out", type=Path, help="JSON file; runs/benchmarks-DEVICE.json by default")
    parser.add_argument("--docs", action="store_true", help="write the results into docs/tables and docs/assets")
    parser.add_argument("--check", action="store_true", help="exit with status 1 and name the rows that miss a target")
    options = parser.parse_args()
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: torch finds no GPU")
    return options


def as_record(topic: str, comparison: Comparison, measured: dict[str, Measured]) -> dict:
    """Return the record of a comparison for the JSON file."""
    ours, against = measured["ours"], measured[comparison.against]
    targets = [
        {"quantity": target.quantity, "limit": target.limit, "measured": target.measured(ours, against)}
        for target in comparison.targets
    ]
    contenders = {name: asdict(values) for name, values in measured.items()}
    return {
        "topic": topic,
        "name": comparison.name,
        "against": comparison.against,
        "sweep": dict(comparison.sweep),
        "targets": targets,
        "contenders": contenders,
    }


if __name__ == "__main__":
    sys.exit(main())
