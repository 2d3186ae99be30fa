"""Numbers of a comparison: mean and standard deviation over the seeds, as a Markdown table."""

import shlex
import statistics
import textwrap
from collections.abc import Iterable, Mapping, Sequence

from examples.preset import Column, Result

COLUMNS = 80  # width of a command, without indentation and backslash


def column_of(name: str, own: Mapping[str, Column]) -> Column:
    """Return the column of a table by name: a column of the method (`own`), or a column that every run has.

    Raises:
        ValueError: when there is no column of that name.
    """
    common = {**{name: _percent(name) for name in ("mAP", "R1", "R5", "R10")}, **COMMON}
    if name.startswith("mAP by "):
        return _percent("mAP", name.removeprefix("mAP by "))
    if name.startswith("mAP of "):  # queries of one group, by the headline descriptor
        return Column(lambda run: 100 * run["groups"][name.removeprefix("mAP of ")][run["headline"]]["mAP"])
    if name not in own and name not in common:
        raise ValueError(f"columns must be among {[*common, *own]}; received {name!r}")
    return own[name] if name in own else common[name]


def _percent(name: str, descriptor: str = "") -> Column:
    return Column(lambda run: 100 * run["descriptors"][descriptor or run["headline"]][name])


COMMON = {
    "foreground %": Column(lambda run: 100 * run["foreground"]),
    "CPU minutes": Column(lambda run: run["training_cpu_minutes"], digits=2),
}


def headline_score(run: Result, score: str = "mAP") -> float:
    """Return a score of the headline descriptor, between 0 and 1."""
    return run["descriptors"][run["headline"]][score]


def values_of(column: Column, runs: Sequence[Result]) -> list[float]:
    """Return the number of a column in each run; [] if the runs have no such number."""
    try:
        return [column.value(run) for run in runs]
    except (KeyError, TypeError, IndexError):
        return []


def as_table(axis: str, columns: Mapping[str, Column], rows: Mapping[str, Sequence[Result]]) -> str:
    """Format a Markdown table with one line per label, from the results of its seeds."""
    lines = []
    for label, runs in rows.items():
        cells = [spread(values_of(column, runs), column.digits) for column in columns.values()]
        lines.append([label, runs[0]["headline"], *cells])
    return as_markdown([axis, "by", *columns], lines)


def as_markdown(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Format a Markdown table."""
    head, *body = ("| " + " | ".join(cells) + " |" for cells in (header, *lines))
    return "\n".join([head, "|" + "---|" * len(header), *body])


def as_page(asks: str, table: str, command: str) -> str:
    """Join what a table says or asks, which may be empty, the table, and the command that made it."""
    return "\n\n".join([*([asks] if asks else []), table, "Made by", command]) + "\n"


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Format mean ± standard deviation without a line break; only the mean for one value or for equal values."""
    if not values:
        return "-"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):z.{digits}f}" + (f"\xa0±\xa0{deviation:.{digits}f}" if deviation else "")


def as_command(arguments: Sequence[str], program: str = "python -m examples.compare") -> str:
    """Format the command line as a shell block of 86 columns, so that an option and its values stay together."""
    options: list[str] = []
    for word in [program, *map(shlex.quote, arguments)]:
        if word.startswith("--") or not options:
            options.append(word)
        else:
            options[-1] += f" {word}"
    lines = [""]
    for option in options:
        fits = len(lines[-1]) + len(option) < COLUMNS
        lines = [*lines[:-1], f"{lines[-1]} {option}".strip()] if fits else [*lines, option]
    pieces = [
        piece
        for line in lines
        for piece in textwrap.wrap(line, COLUMNS, break_long_words=False, break_on_hyphens=False)
    ]
    return "```bash\n" + " \\\n    ".join(pieces) + "\n```"
