"""Compare all methods on one tower, one set and one budget: `python -m examples.compare --preset methods`.

A plain concatenation of class tokens and a small convolutional network are compared as well. A row has its method's
defaults. With `--learning-rates`, the learning rate of a row is chosen on held-out training identities; the table names
the rule and the number of values tried. Finished runs are kept and not repeated.
"""

import dataclasses
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from examples import cli, compare
from examples.comparison_missing import missing_columns, missing_rule, without_each
from examples.comparison_rates import Tries, best_rate, table_of_tries
from examples.comparison_table import column_of
from examples.comparison_written import Table, write
from examples.cost import ITEMS, cost_of
from examples.entrants import Inputs, rows_of
from examples.preset import Column, Result, Row
from examples.run import Run

OWN_COLUMNS = {
    "epochs": Column(lambda run: run["epochs"], digits=0),
    "learning rate": Column(lambda run: run["learning_rate"], digits=4),
    "M parameters": Column(lambda run: run["cost"]["parameters"] / 1e6, digits=2),
    "ms per item": Column(lambda run: run["cost"]["milliseconds"], digits=2),
    "MB per item": Column(lambda run: run["cost"]["megabytes"], digits=2),
}
SHOWN = ("mAP", "R1", "CPU minutes", *OWN_COLUMNS)
# Columns that are named in the rule above the table, instead of in the table, if all rows have equal values.
SETTINGS = ("epochs", "learning rate")
# Share of the training identities to try learning rates on, if the table itself scores the test split.
TRIED_ON = 0.2
Rows = Mapping[str, Run]


@dataclass(frozen=True)
class Options:
    """Comparison of methods. The flags in the groups below are shared by all runs."""

    out: Path
    """Folder of the comparison; its runs are in `runs`, its tables in `methods-epochs` and `methods-cpu`."""
    preset: Literal["methods"] = "methods"
    """Methods, inputs and rules of the comparison."""
    equal: Literal["epochs", "cpu"] = "epochs"
    """Budget common to all rows: epochs, or CPU minutes of training. For CPU minutes, rows are first trained with equal
    epochs, to measure how many epochs fit."""
    cpu_minutes: float = 0.0
    """CPU minutes of a run with `--equal cpu`; 0 takes the minutes of the most costly row at equal epochs."""
    methods: tuple[str, ...] = ()
    """Names of the methods to compare, including "concatenation" and "cnn"; all by default."""
    inputs: tuple[Inputs, ...] = ("images",)
    """Inputs of the models besides images: nothing, masks, captions, or both. The table has a row per entry and method;
    a method that reads no captions has no rows with captions."""
    learning_rates: tuple[float, ...] = ()
    """Learning rates to try for every row, with the first seed, on held-out training identities: the share
    `--validation`, or a fifth if the table scores the test split. By default all rows have the shared learning rate."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds; every row is run once with each seed."""
    jobs: int = 1
    """Number of runs at a time, each with `threads` CPU threads."""
    missing: bool = False
    """Also score the runs without each modality in turn, in a separate table and figure in `methods-epochs-missing` or
    `methods-cpu-missing`."""
    docs: str = ""
    """Name of the set: copy the table to docs/tables and the figure to docs/assets/results."""

    def __post_init__(self) -> None:
        if not 0 <= self.cpu_minutes < float("inf"):
            raise ValueError(f"cpu_minutes must be finite and at least 0; received {self.cpu_minutes}")
        if not all(rate > 0 for rate in self.learning_rates):
            raise ValueError(f"learning_rates must be positive; received {self.learning_rates}")
        for name in ("seeds", "inputs"):
            if len(set(getattr(self, name))) < max(1, len(getattr(self, name))):
                raise ValueError(f"{name} must be at least one, all different; received {getattr(self, name)}")


def try_rates(rows: Rows, options: Options) -> Tries:
    """Train the rows at every learning rate, with the first seed, and score them on validation identities."""
    tried = {
        (label, rate): with_rate(run, rate).changed(
            {"validation": run.data.validation or TRIED_ON, "seed": options.seeds[0]}
        )
        for label, run in rows.items()
        for rate in options.learning_rates
    }
    seed = f"seed-{options.seeds[0]}"
    places = {key: place(options, key[0], f"try-{key[1]:g}", seed) for key in tried}
    results = train_all({places[key]: run for key, run in tried.items()}, options)
    return {label: {rate: results[places[label, rate]] for rate in options.learning_rates} for label in rows}


def with_rate(run: Run, rate: float) -> Run:
    """Set the learning rate of a run for its new modules and its tower, which both start from scratch.

    A run that has this rate already is returned unchanged, and shares the folder of the comparison without tries.
    """
    schedule = run.schedule
    same = rate == schedule.learning_rate == schedule.rates.get("backbone", rate)
    return run if same else run.changed({"learning_rate": rate, "rates.backbone": rate})


def fit_epochs(rows: Rows, results: Mapping[str, list[Result]], minutes: float) -> dict[str, Run]:
    """Set the epochs of the rows to as many as fit into the CPU minutes, at least one.

    A number of epochs, not a clock, ends a run, so that its schedule of the learning rate is complete and the run can
    be repeated exactly.

    Args:
        rows: runs by label.
        results: results of these runs by label, one per seed.
        minutes: CPU minutes of a training; 0 takes the minutes of the most costly row.
    """
    spent = {label: statistics.mean(run["training_cpu_minutes"] for run in runs) for label, runs in results.items()}
    budget = minutes or max(spent.values())
    epochs = {label: max(1, round(run.schedule.epochs * budget / spent[label])) for label, run in rows.items()}
    return {label: run.changed({"epochs": epochs[label]}) for label, run in rows.items()}


def results_of(rows: Rows, options: Options, asked: Rows | None = None) -> dict[str, list[Result]]:
    """Return results of the rows by label, one per seed, with their learning rate and the cost of describing an item.

    Args:
        rows: runs by label.
        options: options that give seeds and folder.
        asked: rows before their learning rates were chosen; None if no rate was tried.
    """
    places = {label: places_of(label, run, options, asked) for label, run in rows.items()}
    seeded = {
        out: rows[label].changed({"seed": seed})
        for label, of_row in places.items()
        for seed, out in zip(options.seeds, of_row, strict=True)
    }
    results = train_all(seeded, options)
    found: dict[str, list[Result]] = {}
    for label, run in rows.items():
        # One after the other, so that no training disturbs the clock.
        cost = cost_of(places[label][0] / "checkpoint.pt", run.quiet().machine)
        more = {"learning_rate": run.schedule.learning_rate, "cost": cost}
        found[label] = [results[out] | more for out in places[label]]
    return found


def places_of(label: str, run: Run, options: Options, asked: Rows | None) -> list[Path]:
    """Return the folders of the runs of a row, one per seed, named by epochs, and by learning rate if it was chosen."""
    rates = [(one.schedule.learning_rate, one.schedule.rates) for one in (run, (asked or {label: run})[label])]
    stage = f"epochs-{run.schedule.epochs}" + (f"-rate-{rates[0][0]:g}" if rates[0] != rates[1] else "")
    return [place(options, label, stage, f"seed-{seed}") for seed in options.seeds]


def place(options: Options, label: str, *parts: str) -> Path:
    """Return the folder of a run."""
    return options.out.joinpath("runs", label.replace(" ", ""), *parts)


def train_all(runs: Mapping[Path, Run], options: Options) -> dict[Path, Result]:
    """Train the runs and return results by folder; finished runs are not repeated."""
    jobs = {out: (run, [Row("", "")]) for out, run in runs.items()}
    return {out: one for out, (one,) in compare.run_jobs(jobs, options.jobs, options.out / "runs").items()}


def rule_of(rows: Rows, results: Mapping[str, list[Result]], options: Options, budget: str) -> str:
    """Describe the settings common to all rows, the choices made, and the columns."""
    run, first = next(iter(rows.values())), next(iter(results.values()))[0]
    rates = {row.schedule.learning_rate for row in rows.values()}
    rate = f", learning rate {rates.pop():g}" if len(rates) == 1 else ""
    share = run.data.validation
    scored = f"{100 * share:g} % of the training identities, held out" if share else "the test split"
    if options.learning_rates:
        chosen = f"The learning rate of each row is the best of {tries_of(rows, options)}. Nothing else was tried."
    else:
        chosen = "Nothing was tried for single rows: each has its method's defaults."
    items = min(ITEMS, int(first["cost"]["items"]))
    return (
        f"Equal for all: {budget}{rate}. Scored on {scored} ({first['protocol']}). {chosen} CPU minutes are those of "
        "one training. Milliseconds of the processor and megabytes beside the weights are those of describing "
        f"{items} items at once that are in memory."
    )


def tries_of(rows: Rows, options: Options) -> str:
    """Describe number and values of the learning rates tried, and what they are scored on."""
    share = next(iter(rows.values())).data.validation or TRIED_ON
    tried = ", ".join(f"{rate:g}" for rate in options.learning_rates)
    return (
        f"{len(options.learning_rates)} tries ({tried}) by mAP on {100 * share:g} % of the training identities, held "
        f"out, with seed {options.seeds[0]}"
    )


def main(shared: Mapping[str, Any], options: Options) -> str:
    """Make missing runs, then write table.md, table.json and the figure into the folder of the comparison."""
    rows, texts, asked = rows_of(shared, options.methods, options.inputs), [], None
    if options.learning_rates:
        asked, tries = rows, try_rates(rows, options)
        first = dataclasses.replace(options, seeds=options.seeds[:1])
        rule = f"Which learning rate is best for each row? Each had {tries_of(rows, options)}. Nothing else was tried."
        texts.append(write(*table_of_tries(tries, rule), first))
        rows = {label: with_rate(run, best_rate(tries[label])) for label, run in rows.items()}
    budget = f"{next(iter(rows.values())).schedule.epochs} epochs"
    results = results_of(rows, options, asked)
    if options.equal == "cpu":
        most = max(statistics.mean(run["training_cpu_minutes"] for run in runs) for runs in results.values())
        minutes = options.cpu_minutes or most
        budget = f"{minutes:.3g} CPU minutes of training, as whole epochs at the speed measured over {budget}"
        rows = fit_epochs(rows, results, minutes)
        results = results_of(rows, options, asked)
    rule = rule_of(rows, results, options, budget)
    shown = {name: column_of(name, OWN_COLUMNS) for name in SHOWN}
    equal = {name for name in SETTINGS if len({shown[name].value(runs[0]) for runs in results.values()}) == 1}
    columns = {name: column for name, column in shown.items() if name not in equal}
    tuned = "-tuned" if options.learning_rates else ""
    name, title = f"methods-{options.equal}{tuned}", f"equal {'CPU minutes' if options.equal == 'cpu' else 'epochs'}"
    texts.append(write(Table(name, title, rule, columns), results, options))
    if options.missing:
        for label, run in rows.items():
            checkpoints = [out / "checkpoint.pt" for out in places_of(label, run, options, asked)]
            results[label] = without_each(run.quiet(), checkpoints, results[label])
        run = next(iter(rows.values()))
        columns = missing_columns(run.data.modalities)
        table = Table(f"{name}-missing", f"{title}, a modality missing at test", missing_rule(run), columns)
        texts.append(write(table, results, options))
    return "\n".join(texts)


def command() -> None:
    """Parse the command line and compare the methods."""
    with cli.errors_as_a_line():
        name = "python -m examples.compare"
        about = f"{compare.__doc__}\n{__doc__}"
        main(*cli.parse_shared(sys.argv[1:], Options, name, about))
