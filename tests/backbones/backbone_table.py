"""Table of backbones for the docs: every check on every family of vision transformers.

python -m tests.backbones.backbone_table
"""

import logging
import warnings
from pathlib import Path

from tests.backbones.backbone_checks import COLUMNS, FAMILIES, outcome

TABLE = Path(__file__).parents[2] / "docs/tables/backbones.md"


def rows() -> dict[str, dict[str, str]]:
    """The cells of the committed table, by family and column."""
    lines = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    header, _, *body = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {cells[0]: dict(zip(header[1:], cells[1:], strict=True)) for cells in body}


def main() -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    lines = ["| Model | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for family in FAMILIES:
        cells = [outcome(family, column) for column in COLUMNS]
        lines.append(f"| {family} | " + " | ".join(cells) + " |")
        print(lines[-1], flush=True)
    TABLE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
