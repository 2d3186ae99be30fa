"""Tables about items: CSV and Parquet, read as text or refused with the file and the reason."""

import csv
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from stmi_layers.training.messages import printable

Rows = Sequence[Mapping[str, str]]
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}


def is_there(file: Path) -> bool:
    """Tell whether an optional file is there.

    Raises:
        ValueError: when what is there cannot be read as a file: a folder, a pipe, a link that leads nowhere.
    """
    try:
        mode = os.stat(file).st_mode
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(file):
            raise ValueError(f"{file} cannot be read: it is a link that leads nowhere") from None
        return False
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    if not stat.S_ISREG(mode):
        raise ValueError(f"{file} cannot be read: it is {'a folder' if stat.S_ISDIR(mode) else 'no file'}")
    return True


def read_csv(file: Path, key: str) -> tuple[list[str], Rows]:
    """Read the header and rows of a comma-separated table in UTF-8.

    Args:
        file: the table, with or without a byte order mark.
        key: column that the table must have.

    Raises:
        ValueError: when the file cannot be read as such a table; the message says how to save it.
    """
    cure = "save it as CSV in UTF-8, separated by commas"
    try:
        with file.open(encoding="utf-8-sig", newline="") as lines:
            table = csv.DictReader(lines, strict=True)
            header, rows = list(table.fieldnames or ()), list(table)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{file} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}; {cure}"
        ) from error
    except csv.Error as error:
        raise ValueError(f"{file} is not a CSV table: {error}; {cure}") from error
    if key not in header:
        for separator, words in SEPARATORS.items():
            if any(key in cell.split(separator) for cell in header):
                raise ValueError(f"{file} must separate its columns by commas; it has {words}. Please {cure}")
    check_header(file, header, key)
    uneven = [number for number, row in enumerate(rows, start=2) if None in row or None in row.values()]
    if uneven:
        raise ValueError(
            f"{file}: {len(uneven)} rows have more or fewer cells than the header, the first is {uneven[0]}"
        )
    return header, rows


def read_parquet(file: Path, key: str) -> tuple[list[str], Rows]:
    """Read the header and rows of a Parquet file, all cells as text, an empty cell as "".

    Raises:
        ImportError: when pyarrow is not installed.
        ValueError: when the file cannot be read, or has no column `key`.
    """
    try:
        from pyarrow import ArrowException, parquet  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(f"{file} needs pyarrow: pip install pyarrow, or write the manifest as CSV") from error
    try:
        table = parquet.read_table(file, partitioning=None)  # pyright: ignore[reportArgumentType]
    except (ArrowException, OSError) as error:
        raise ValueError(f"{file} cannot be read as Parquet: {printable(error)}") from error
    header = [str(name) for name in table.column_names]
    check_header(file, header, key)
    return header, [{name: _text(cell) for name, cell in row.items()} for row in table.to_pylist()]


def _text(cell: object) -> str:
    """Return a cell as text; NaN and None are missing values."""
    return "" if cell is None or cell != cell else str(cell)


def check_header(file: Path, header: list[str], key: str) -> None:
    """Refuse a table that lacks a column, or has one twice."""
    if key not in header or len(set(header)) < len(header):
        names = printable(", ".join(header)) or "none"
        raise ValueError(f"{file} must have the column {key}, and no column name twice; it has {names}")
