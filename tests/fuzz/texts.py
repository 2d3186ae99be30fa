"""Variants of captions, items.csv and manifests."""

import csv
import io
import json
from pathlib import Path
from random import Random

from .truth import Variant

ENCODINGS = (*("utf-8", "utf-8-sig") * 4, "cp1252", "utf-16", "latin-1")
WORDS = ("mon", "für", "a\tb", 'a "b"', "", " ", "1e9", "é" * 300, "a,b", "a\nb", "\x1b[2J")


def captions(variant: Variant, random: Random) -> None:
    """The captions of the training split in another form."""
    path = variant.root / "text" / "train.json"
    entries = json.loads(path.read_text())
    name = random.choice(sorted(variant.truth))
    place = [entry["item"] for entry in entries].index(f"{name}.png")
    way = random.choice(sorted(CAPTIONS))
    variant.what, variant.names = f"captions: {way}", ("train.json", name)
    if way == "one per modality":
        path.unlink()
        for modality in ("RGB", "TI"):
            half = [{**entry, "description": f"{modality} {entry['item']}"} for entry in entries]
            path.with_name(f"train_{modality}.json").write_text(json.dumps(half))
        for one in variant.truth:
            variant.truth[one].caption = f"RGB {one}.png TI {one}.png"
        return
    change, caption = CAPTIONS[way]
    text = change(entries, place)
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    if caption is not None:
        variant.truth[name].caption = caption


def _entry(**changes: object):
    """A change of one entry, whose keys of None go."""

    def change(entries: list, place: int) -> str:
        entry = {**entries[place], **changes}
        entries[place] = {key: value for key, value in entry.items() if value != "nothing"}
        return json.dumps(entries)

    return change


def _encoded(encoding: str):
    return lambda entries, place: json.dumps(entries).encode(encoding)


# A change of the file by its name, and the caption of the entry that it leaves, None for the one it had.
CAPTIONS = {
    "null": (_entry(description=None), ""),
    "empty": (_entry(description=""), ""),
    "spaces": (_entry(description="  \n"), ""),
    "a number": (_entry(description=3), None),
    "a list": (_entry(description=["a", "b"]), None),
    "without description": (_entry(description="nothing"), ""),
    "without item": (_entry(item="nothing"), None),
    "another item": (_entry(item="999999_cam9.png"), None),
    "path of the item": (lambda entries, place: json.dumps(_with_paths(entries)), None),
    "an escape of a terminal": (_entry(description="\x1b[2J"), "\x1b[2J"),
    "half a character": (_entry(description="\ud800"), "\ud800"),
    "more keys": (_entry(model="tiny"), None),
    "twice": (lambda entries, place: json.dumps([*entries, entries[place]]), None),
    "one missing": (lambda entries, place: json.dumps(entries[:place] + entries[place + 1 :]), ""),
    "byte order mark": (_encoded("utf-8-sig"), None),
    "UTF-16": (_encoded("utf-16"), None),
    "no JSON": (lambda entries, place: "[{", None),
    "nothing": (lambda entries, place: "", None),
    "lines": (lambda entries, place: "\n".join(map(json.dumps, entries)), None),
    "an object": (lambda entries, place: json.dumps({"items": entries}), None),
    "deep": (lambda entries, place: "[" * 5000 + "]" * 5000, None),
    "a long number": (lambda entries, place: "[" + "9" * 5000 + "]", None),
    "NaN": (lambda entries, place: "NaN", None),
    "zeros": (lambda entries, place: bytes(40), None),
    "one per modality": (None, None),
}


def _with_paths(entries: list) -> list:
    return [{**entry, "item": f"train/RGB/{entry['item']}"} for entry in entries]


def columns(variant: Variant, random: Random) -> None:
    """items.csv in another encoding, with other separators, quotes, ends of lines, rows and columns."""
    path = variant.root / "items.csv"
    rows = [row.split(",") for row in path.read_text().split()]
    name = random.choice(sorted(variant.truth))
    place = [row[0] for row in rows].index(name)
    word, encoding = random.choice(WORDS), random.choice(ENCODINGS)
    separator, end = random.choice(",,,,,,,,;\t|"), random.choice(("\n", "\r\n", "\r", "\n\n"))
    way = random.choice(
        (
            "as it is",
            "as it is",
            "as it is",
            "ragged",
            "twice",
            "missing",
            "suffix",
            "unknown",
            "header",
            "spaces",
            "NUL",
            "big",
        )
    )
    rows[place][1] = word
    if way == "ragged":
        rows[place] = rows[place] + ["more"] if random.random() < 0.5 else rows[place][:1]
    if way == "twice":
        rows.append(rows[place])
    if way == "missing":
        del rows[place]
    if way == "suffix":
        rows[place][0] += ".png"
    if way == "unknown":
        rows.append(["999999_cam9_0", "x"])
    if way == "header":
        rows[0] = random.choice((["Item", "day"], ["item", "item"], ["item", "camera"], ["item"], [], ["item", ""]))
    if way == "spaces":
        rows = [[f" {cell}" for cell in row] for row in rows]
    if way == "NUL":
        rows[place][1] = "a\0b"
    if way == "big":
        rows[place][1] = "x" * 200_000
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=end).writerows(rows)
    path.write_bytes(text.getvalue().encode(encoding, "replace"))
    variant.what = f"items.csv: {way}, {word[:9]!r}, {encoding}, {separator!r}, {end!r}"
    variant.names = ("items.csv",)
    read = rows[place][1] if way != "missing" and len(rows) > place and len(rows[place]) > 1 else None
    written = None if read is None else read.encode(encoding, "replace").decode(encoding)
    variant.truth[name].day = written if way not in ("header", "spaces") else None
    if way in ("header", "spaces"):
        for content in variant.truth.values():
            content.day = None


def manifest(variant: Variant, random: Random) -> None:
    """A table that lists the files of the set, with one cell, column or path that is odd."""
    root = variant.root
    header = ["split", "identity", "camera", "RGB", "TI", "mask", "caption", "day", "item"]
    rows = []
    for image in sorted(root.glob("*/RGB/*.png")):
        split, name = image.parts[-3], image.stem
        paths = [f"{split}/{folder}/{name}.png" for folder in ("RGB", "TI", "mask")]
        rows.append([split, name[:6].lstrip("0"), name[10], *paths, f"about {name}", "mon", name])
    for stray in ("items.csv", "text/train.json", "text/test.json"):
        (root / stray).unlink()
    (root / "text").rmdir()
    place = next(index for index, row in enumerate(rows) if row[0] == "train")
    way = random.choice(sorted(MANIFESTS))
    name = rows[place][-1]
    MANIFESTS[way](header, rows, place, root)
    odd = rows[place] if place < len(rows) else []
    encoding = random.choice(("utf-8", "utf-8-sig", "utf-8"))
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *rows])
    (root / "manifest.csv").write_bytes(text.getvalue().encode(encoding, "surrogateescape"))
    variant.what, variant.names = (
        f"manifest: {way}",
        ("manifest.csv", name, *filter(None, odd[-1:]), *filter(None, odd[3:4])),
    )


def _cell(column: int, value: str):
    def change(header: list, rows: list, place: int, root: Path) -> None:
        rows[place][column] = value

    return change


def _absolute(header: list, rows: list, place: int, root: Path) -> None:
    for row in rows:
        row[3] = str(root / row[3])


def _shuffled(header: list, rows: list, place: int, root: Path) -> None:
    for row in (header, *rows):
        row[:] = row[::-1]
    header[:], rows[:] = [*header], [[*row] for row in rows]


def _without(name: str):
    def change(header: list, rows: list, place: int, root: Path) -> None:
        column = header.index(name)
        for row in (header, *rows):
            row[column] = "" if row is not header else f"no_{name}"

    return change


MANIFESTS = {
    "as it is": lambda header, rows, place, root: None,
    "absolute paths": _absolute,
    "a path that is not there": _cell(3, "nowhere/x.png"),
    "a path outside": _cell(3, "../../../x.png"),
    "a folder": _cell(3, "train.png"),
    "a device": _cell(3, "/dev/zero.png"),
    "no image": _cell(3, ""),
    "an identity of 30 digits": _cell(1, "9" * 30),
    "a camera that is a word": _cell(2, "left"),
    "a camera of 30 digits": _cell(2, "9" * 30),
    "a split that leads away": _cell(0, "../../train"),
    "no split": _cell(0, ""),
    "an item that leads away": _cell(-1, "../../../x"),
    "an item with an escape": _cell(-1, "a\x1b[2J"),
    "an absolute item": _cell(-1, "/etc/x"),
    "a row twice": lambda header, rows, place, root: rows.append(list(rows[place])),
    "a short row": lambda header, rows, place, root: rows[place].pop(),
    "a long row": lambda header, rows, place, root: rows[place].append("more"),
    "no column split": _without("split"),
    "no column identity": _without("identity"),
    "no column camera": _without("camera"),
    "two columns of a name": lambda header, rows, place, root: header.__setitem__(7, "split"),
    "no rows": lambda header, rows, place, root: rows.clear() or rows.append([""] * 9),
    "half a character": _cell(7, "\udcff"),
}
