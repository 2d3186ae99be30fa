"""More test cities: each training city in turn is the test split, and the others are the training split.

    python -m examples.prepare.aerial.cities runs/aerial runs/cities

needs nothing but the built sets. A result that holds in every city does not hang on one of them. The test city of the
built sets is left out, so its images stay unseen.
"""

import csv
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tyro

from examples import cli
from examples.prepare.aerial.build import COLUMNS, PROVENANCE, refuse_filled, write_captions, write_provenance
from stmi_layers.training.files import write_folder

# Folders of a split, and the suffix of their files.
KINDS = {"RGB": "jpg", "NI": "jpg", "mask": "png"}
# Rows of naip_provenance.csv.
Rows = list[dict[str, str]]


@dataclass(frozen=True)
class Arguments:
    """Built sets, and folder of the new sets."""

    sets: tyro.conf.Positional[Path]
    """Folder of the built sets."""
    out: tyro.conf.Positional[Path]
    """Folder of the new sets, which must not exist or be empty."""


def hold_out_cities(sets: Path, out: Path) -> dict[str, int]:
    """Write a set per kind of set and training city, `naip_provenance.csv` and `SOURCE.txt`.

    Args:
        sets: folder of the built sets.
        out: folder of the new sets, which must not exist or be empty. Files are copied.

    Returns:
        The number of identities by set and split.

    Raises:
        FileExistsError: when `out` holds anything already.
        FileNotFoundError: when `sets` lacks its provenance, or a file that the provenance names.
        ValueError: when no file is of a training split, or a kind of set has fewer than two training cities.
    """
    refuse_filled(out)
    train = [row for row in read_provenance(sets) if row["split"].startswith("train")]
    if not train:
        raise ValueError(f"{sets} must have training splits; its naip_provenance.csv names none")
    counts: dict[str, int] = {}
    written: list[list[str]] = []
    with write_folder(out) as unfinished:
        for home, split, rows in list_splits(train):
            copy_split(sets, unfinished / home, split, rows)
            written += [[{**row, "set": home, "split": split}[column] for column in COLUMNS] for row in rows]
            counts[f"{home}/{split}"] = count_identities(rows)
        write_provenance(unfinished, written)
        if (sets / "SOURCE.txt").exists():
            shutil.copyfile(sets / "SOURCE.txt", unfinished / "SOURCE.txt")
    return counts


def list_splits(train: Rows) -> Iterator[tuple[str, str, Rows]]:
    """Yield the folder of a new set, the name of a split and its rows, for each kind of set, city and split.

    Args:
        train: rows of the training splits of all kinds of sets.

    Raises:
        ValueError: when a kind of set has fewer than two training cities.
    """
    for kind in dict.fromkeys(row["set"] for row in train):
        rows = [row for row in train if row["set"] == kind]
        cities = list(dict.fromkeys(row["city"] for row in rows))
        if len(cities) < 2:
            raise ValueError(f"{kind} must have two training cities or more; received {', '.join(cities)}")
        for city in cities:
            others = [row for row in rows if row["city"] != city]
            yield f"{kind}_{city}", f"train_{count_identities(others)}", others
            yield f"{kind}_{city}", "test", [row for row in rows if row["city"] == city]


def count_identities(rows: Rows) -> int:
    """Count the identities in the names of the rows."""
    return len({row["name"].split("_")[0] for row in rows})


def read_provenance(sets: Path) -> Rows:
    """Read the rows of `naip_provenance.csv`.

    Raises:
        FileNotFoundError: when there is no such file.
    """
    file = sets / PROVENANCE
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; give the folder that python -m examples.prepare.aerial wrote")
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def copy_split(sets: Path, folder: Path, split: str, rows: Rows) -> None:
    """Copy images, masks and captions of the rows of one set to a split of a new set."""
    for kind, suffix in KINDS.items():
        (folder / split / kind).mkdir(parents=True)
        for row in rows:
            file = Path(kind) / f"{row['name']}.{suffix}"
            shutil.copyfile(sets / row["set"] / row["split"] / file, folder / split / file)
    texts = sets / rows[0]["set"] / "text" / "train.json"
    if texts.exists():
        named = {f"{row['name']}.jpg" for row in rows}
        entries = json.loads(texts.read_text(encoding="utf-8"))
        write_captions(folder, split, [entry for entry in entries if entry["item"] in named])


def main(arguments: Arguments) -> None:
    """Hold out each training city in turn, and print the sets."""
    for name, count in hold_out_cities(arguments.sets, arguments.out).items():
        print(f"{arguments.out / name}: {count} identities")


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.prepare.aerial.cities")
