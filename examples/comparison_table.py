"""The numbers of a comparison: mean and standard deviation over the seeds, as a Markdown table."""

import shlex
import statistics
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

Result = dict[str, Any]


def _percent(name: str, descriptor: str = "") -> Callable[[Result], float]:
    return lambda run: 100 * run["descriptors"][descriptor or run["headline"]][name]


# What a column shows of a run. A run that has no such number raises KeyError or TypeError: the cell stays empty.
# Strengths are those of the blocks in which SFM acts; the others have 0.
COLUMNS: dict[str, Callable[[Result], float]] = {
    **{name: _percent(name) for name in ("mAP", "R1", "R5", "R10")},
    **{f"mAP by {name}": _percent("mAP", name) for name in ("G", "T", "all")},
    "alpha": lambda run: statistics.mean(filter(None, run["strengths"]["alpha"])),
    "beta": lambda run: statistics.mean(filter(None, run["strengths"]["beta"])),
    "edge size": lambda run: run["hypergraph"]["mean_edge_size"],
    "nodes": lambda run: run["hypergraph"]["nodes"],
    "isolated %": lambda run: 100 * run["hypergraph"]["isolated_share"],
    "cross-modal %": lambda run: 100 * run["hypergraph"]["cross_modal_share"],
    "foreground %": lambda run: 100 * run["foreground"],
    "CPU minutes": lambda run: run["training_cpu_minutes"],
}
DIGITS = {"alpha": 2, "beta": 2, "edge size": 2, "nodes": 0, "CPU minutes": 2}


def values_of(column: str, runs: Sequence[Result]) -> list[float]:
    """The column's number in each run; none when the runs have no such number."""
    try:
        return [COLUMNS[column](run) for run in runs]
    except (KeyError, TypeError, statistics.StatisticsError):
        return []


def as_table(axis: str, columns: Sequence[str], rows: dict[str, list[Result]]) -> str:
    """Markdown of one line per label, from the results of its seeds."""
    header = [axis, "by", *columns]
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    for label, runs in rows.items():
        cells = [spread(values_of(column, runs), DIGITS.get(column, 1)) for column in columns]
        lines.append("| " + " | ".join([label, runs[0]["headline"], *cells]) + " |")
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean ± standard deviation; the mean alone of one value or of equal ones."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f}" + (f" ± {deviation:.{digits}f}" if deviation else "")


def as_command(arguments: Sequence[str]) -> str:
    """The command line as a block of shell, wrapped."""
    line = "python -m examples.compare " + shlex.join(arguments)
    wrapped = textwrap.wrap(line, 108, break_long_words=False, break_on_hyphens=False)
    return "```bash\n" + " \\\n    ".join(wrapped) + "\n```"
