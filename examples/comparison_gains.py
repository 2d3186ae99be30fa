"""Gains by an input: the mAP of every method with the input less its mAP without it, seed by seed.

python -m examples.comparison_gains --tables runs/places/methods-epochs runs/parcels/methods-epochs \
    --names places parcels --inputs masks --without images --out runs/gains-masks

reads the table.json that `python -m examples.compare --preset methods` writes. `--against` names other comparisons for
the rows that have less, as those of runs with one modality less.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from examples import cli, compare
from examples.comparison_table import as_command, as_markdown, as_page, headline_score, spread
from examples.entrants import Inputs
from stmi_layers.training.files import write_text

PROGRAM = "python -m examples.comparison_gains"
# Scores in percent by method and seed.
Scores = Mapping[str, Mapping[int, float]]


@dataclass(frozen=True)
class Arguments:
    """Rows of comparisons that have an input, against the same rows without it."""

    tables: tuple[Path, ...]
    """Folders that hold a table.json each."""
    names: tuple[str, ...]
    """Column of each table, in the same order."""
    out: Path
    """Folder of table.md."""
    inputs: Inputs = "masks"
    """Inputs of the rows that have more."""
    without: Inputs = "images"
    """Inputs of the rows that have less."""
    against: tuple[Path, ...] = ()
    """Folders of the rows that have less, one per table; the same tables by default."""
    docs: str = ""
    """Name of the table: copy it to docs/tables/results-NAME.md."""

    def __post_init__(self) -> None:
        if not self.tables or len(self.tables) != len(self.names):
            raise ValueError(f"names must be as many as tables; received {len(self.names)} and {len(self.tables)}")
        if self.against and len(self.against) != len(self.tables):
            raise ValueError(f"against must be as many as tables; received {len(self.against)} and {len(self.tables)}")


def read_scores(folder: Path, inputs: Inputs) -> Scores:
    """Read the mAP of the rows with these inputs, in percent, by method and seed."""
    found: dict[str, dict[int, float]] = {}
    for run in json.loads((folder / "table.json").read_text())["runs"]:
        method, _, more = run["label"].partition(" + ")
        if (more.replace(" ", "") or "images") == inputs:
            found.setdefault(method, {})[run["seed"]] = 100 * headline_score(run["result"])
    return found


def gains(more: Scores, less: Scores) -> dict[str, list[float]]:
    """Subtract the scores by method, for every seed that both have."""
    return {
        method: [score - less[method][seed] for seed, score in of_seed.items() if seed in less[method]]
        for method, of_seed in more.items()
        if method in less
    }


def as_gain(values: Sequence[float]) -> str:
    """Format mean ± standard deviation of the differences, and the seeds that gain out of all."""
    return f"{spread(values)} ({sum(value > 0 for value in values)}/{len(values)})" if values else "-"


def main(arguments: Arguments) -> str:
    """Write the table and print it."""
    columns = [
        gains(read_scores(table, arguments.inputs), read_scores(other, arguments.without))
        for table, other in zip(arguments.tables, arguments.against or arguments.tables, strict=True)
    ]
    methods = list(dict.fromkeys(method for column in columns for method in column))
    if not methods:
        raise ValueError(f"inputs and without must have rows of one method; received tables without {arguments.inputs}")
    lines = [[method, *(as_gain(column.get(method, [])) for column in columns)] for method in methods]
    asks = (
        "Points of mAP that a row gains, mean ± standard deviation over the seeds, each against the run of the same "
        "seed; in parentheses, the seeds that gain."
    )
    text = as_page(asks, as_markdown(["method", *arguments.names], lines), as_command(sys.argv[1:], PROGRAM))
    write_text(arguments.out / "table.md", text)
    if arguments.docs:
        write_text(compare.DOCS / "tables" / f"results-{arguments.docs}.md", text)
    print(text)
    return text


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog=PROGRAM)
