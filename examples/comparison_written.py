"""Files of a comparison of methods: table.md, table.json and the figure."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

from examples import compare
from examples.comparison_table import as_command, as_page, as_table
from examples.preset import Column, Result
from stmi_layers.training.files import write_text


class Table(NamedTuple):
    """Table of a comparison: name of its folder, title of its figure, its question, and its columns by name."""

    name: str
    title: str
    asks: str
    columns: Mapping[str, Column]


class Place(Protocol):
    """Options of a comparison: output folder, name for the documentation, and seeds of the runs."""

    @property
    def out(self) -> Path: ...
    @property
    def docs(self) -> str: ...
    @property
    def seeds(self) -> tuple[int, ...]: ...


def write(table: Table, results: Mapping[str, list[Result]], options: Place) -> str:
    """Write table and figure, and return the text of the table.

    Args:
        table: table to write.
        results: results by label, one per seed.
        options: output folder, name for the documentation, and seeds.
    """
    text = as_page(table.asks, as_table("method", table.columns, results), as_command(sys.argv[1:]))
    folder = options.out / table.name
    write_text(folder / "table.md", text)
    runs = [
        {"label": label, "seed": seed, "result": result}
        for label, of_label in results.items()
        for seed, result in zip(options.seeds, of_label, strict=True)
    ]
    content = {"title": table.title, "asks": table.asks, "command": sys.argv[1:], "runs": runs}
    write_text(folder / "table.json", json.dumps(content, indent=2) + "\n")
    from examples.comparison_rows import draw_columns

    title = f"{(options.docs or options.out.name).replace('-', ' ')}: {table.title}"
    figures = draw_columns(table.columns, results, folder / "figure", title=title)
    if options.docs:
        compare.publish(folder, f"{options.docs}-{table.name}")
    print(text, *figures, sep="\n")
    return text
