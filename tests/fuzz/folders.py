"""Variants of names and folders: files that operating systems leave, odd names, missing and duplicate files, links."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random

from .truth import Variant

STRAY = ("@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found", ".git", "#recycle", "notes")
SUFFIXES = (".heic", ".raw", ".npy", ".mat", "", ".jpg_", ".webm", ".PNG~", ".fits")


def folders(variant: Variant, random: Random) -> None:
    """One change of names or folders."""
    name = random.choice(sorted(variant.truth))
    split, modality = variant.root / "train", random.choice(("RGB", "TI"))
    path = split / modality / f"{name}.png"
    variant.names = (name,)
    way = random.choice(sorted(WAYS))
    variant.what = f"folders: {way}"
    WAYS[way](variant, path, random)


def _stray(variant: Variant, path: Path, random: Random) -> None:
    stray = random.choice(STRAY)
    variant.what += f" {stray}"
    place = random.choice((variant.root, path.parents[1], path.parent)) / stray
    shutil.copytree(path.parent, place / random.choice(("RGB", "S-1-5", ".")), dirs_exist_ok=True)
    variant.names = (stray,)


def _unread(variant: Variant, path: Path, random: Random) -> None:
    suffix = random.choice(SUFFIXES)
    variant.what += f" {suffix!r}"
    for folder in ("RGB", "TI", "mask"):
        for one in path.parents[1].glob(f"{folder}/*_cam2_*"):
            one.rename(one.with_suffix(suffix) if suffix != ".PNG~" else one.with_name(one.name + "~"))
    variant.names = ("without suffix", "_cam2") if not suffix else (suffix, ".png~", "_cam2")


def _nested(variant: Variant, path: Path, random: Random) -> None:
    inner = variant.root.with_name("inner")
    variant.root.rename(inner)
    place = variant.root / random.choice(("set", "a/set", "rgbir"))
    place.parent.mkdir(parents=True)
    inner.rename(place)
    variant.names = (place.name, "text", "no caption")


def _renamed(variant: Variant, path: Path, random: Random) -> None:
    odd = random.choice(ODD)
    variant.what += f" {odd!r}"
    for folder in ("RGB", "TI", "mask"):
        os.rename(os.fsencode(path.parents[1] / folder / path.name), os.fsencode(path.parents[1] / folder) + b"/" + odd)
    variant.names = ("000001_cam", "00000", odd.decode("ascii", "ignore")[:6], "cam")


ODD = (
    b"000001_cam1.png.png",
    b"000001_cam1_\xff.png",
    b"000001_cam1_\x1b[2J.png",
    b"000001_cam1_\n.png",
    b"99999999999999999999_cam1.png",
    b"000001_cam99999999999999999999.png",
    b"-1_cam1_0.png",
    b"0001_c1.png",
    b"IMG 0001.png",
    b"000001_cam1_%s{}.png",
    "000001_cam1_\u202egnp.png".encode(),
)


def _broken(variant: Variant, path: Path, random: Random) -> None:
    path.unlink()
    way = random.choice(("link", "loop", "folder", "pipe", "device", "gone"))
    variant.what += f" {way}"
    if way == "link":
        path.symlink_to("/nowhere/x.png")
    elif way == "loop":
        path.symlink_to(path.name)
    elif way == "folder":
        path.mkdir()
    elif way == "pipe":
        os.mkfifo(path)
    elif way == "device":
        path.symlink_to("/dev/zero")


def _doubled(variant: Variant, path: Path, random: Random) -> None:
    shutil.copy(path, path.with_suffix(random.choice((".jpg", ".PNG", ".bmp"))))


def _copied(variant: Variant, path: Path, random: Random) -> None:
    shutil.copy(path, path.with_name(random.choice(("000009_cam1_0.png", "copy of 1.png", "Thumbs.png"))))
    variant.names = ("000009_cam1_0", "copy of 1", "Thumbs")


def _split_gone(variant: Variant, path: Path, random: Random) -> None:
    gone = random.choice(("test", "train"))
    shutil.rmtree(variant.root / gone)
    variant.names = (f"no split '{gone}'", "items that do not exist")


def _empty(variant: Variant, path: Path, random: Random) -> None:
    for one in path.parent.iterdir():
        one.unlink()
    variant.names = (path.parent.name,)


def _case(variant: Variant, path: Path, random: Random) -> None:
    folder = random.choice(("RGB", "mask"))
    path.parents[1].joinpath(folder).rename(
        path.parents[1] / random.choice((folder.lower() + "s", folder.title(), "x"))
    )
    variant.names = (folder, folder.title(), folder.lower() + "s", "x")


def _shared(variant: Variant, path: Path, random: Random) -> None:
    """An identity of train in test: read as it is, and noted."""
    for folder in ("RGB", "TI", "mask"):
        place = variant.root / "test" / folder
        shutil.copy(place / "000003_cam1_0.png", place / "000001_cam1_9.png")
    variant.names = ("identities are in train and in test", "000001_cam1_9")


def _no_masks(variant: Variant, path: Path, random: Random) -> None:
    (path.parents[1] / "mask" / path.name).unlink()
    variant.truth[path.stem].mask = None


def _results(variant: Variant, path: Path, random: Random) -> None:
    """What commands of the project write, inside the set: no part of it."""
    place = random.choice((variant.root, variant.root / "runs")) / "mine"
    (place / "figures").mkdir(parents=True)
    for picture in (place / "retrieval.png", place / "figures" / "curves.png"):
        shutil.copy(path, picture)
    for name in random.choice((("checkpoint.pt",), ("extraction.json",), ("counts.csv", "contact_sheet.png"))):
        (place / name).write_text("x")


def _deeper(variant: Variant, path: Path, random: Random) -> None:
    for folder in ("RGB", "TI", "mask"):
        below = path.parents[1] / folder / "day 2"
        below.mkdir()
        for one in list(path.parents[1].glob(f"{folder}/*_cam2_*")):
            one.rename(below / one.name)
    variant.names = ("day 2", "_cam2")


def _no_file(variant: Variant, path: Path, random: Random) -> None:
    """Something else where a table or captions would be."""
    place = variant.root / random.choice(("items.csv", "text/train.json", "manifest.csv"))
    place.unlink(missing_ok=True)
    way = random.choice(("link", "pipe", "folder"))
    variant.what += f", {place.name}, {way}"
    if way == "link":
        place.symlink_to("/nowhere/x")
    elif way == "pipe":
        os.mkfifo(place)
    else:
        place.mkdir()
    variant.names = (place.name,)


def _documents(variant: Variant, path: Path, random: Random) -> None:
    for name in ("README", "notes.txt", ".DS_Store", "Thumbs.db", "labels.json"):
        (path.parent / name).write_text("x")


WAYS: dict[str, Callable[[Variant, Path, Random], None]] = {
    "of a system": _stray,
    "suffixes that are not read": _unread,
    "around the set": _nested,
    "an odd name": _renamed,
    "a file that is none": _broken,
    "a stem twice": _doubled,
    "an image too many": _copied,
    "a split is gone": _split_gone,
    "a modality is empty": _empty,
    "a folder is called otherwise": _case,
    "an identity in both splits": _shared,
    "a mask is gone": _no_masks,
    "documents": _documents,
    "results inside": _results,
    "images one deeper": _deeper,
    "a table that is no file": _no_file,
}
