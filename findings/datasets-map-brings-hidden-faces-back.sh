#!/usr/bin/env bash
# Package: datasets 5.2.0 (with Pillow 13.0.0)
# Guess: what `map` returns is what the new set holds, so a face that was blacked out, or a background, is gone from it.
# Seen: an image that is changed in place is still the object that Pillow opened from a file, and datasets stores the name of
#   that file instead of the pixels. After ImageDraw, paste, putpixel or thumbnail the set holds the original, in Parquet as
#   well, and so does a set that is made by from_dict. A grey image that is made in the same call holds the change. Where
#   the images of the first set are bytes, as those read from Parquet are, the change is stored: one function hides faces
#   in one set and not in another. With with_transform, and with `image.copy()` before the change, faces are hidden. No
#   error or warning says so.
# For us: images are files, no set is rewritten, and masks are files of their own. The guide on data warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
cd "$folder"
HF_HOME="$folder/cache" venv/bin/python -W ignore - <<'END'
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageDraw

datasets.disable_progress_bars()
head = slice(8, 28), slice(22, 42)
person = np.full((128, 64, 3), 90, np.uint8)
person[head] = 200, 160, 130
for name in ("person.png", "person.jpg"):
    Image.fromarray(person).save(name, quality=95)


def drawn(image: Image.Image) -> Image.Image:
    ImageDraw.Draw(image).rectangle((22, 8, 41, 27), fill=0)
    return image


def pasted(image: Image.Image) -> Image.Image:
    image.paste(0, (22, 8, 42, 28))
    return image


def pixels(image: Image.Image) -> Image.Image:
    for y in range(8, 28):
        for x in range(22, 42):
            image.putpixel((x, y), (0, 0, 0))
    return image


def face(image: Image.Image) -> int:
    return round(float(np.asarray(image)[head].mean()))


def images(**value) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"image": [value]}).cast_column("image", datasets.Image())


def mapped(rows: datasets.Dataset, change) -> datasets.Dataset:
    return rows.map(lambda row: {"image": change(row["image"])}, load_from_cache_file=False)


for name in ("person.png", "person.jpg"):
    files, stored = images(path=name, bytes=None), images(path=name, bytes=Path(name).read_bytes())
    for change in (drawn, pasted, pixels):
        levels = [face(mapped(rows, change)[0]["image"]) for rows in (files, stored)]
        assert face(change(Image.open(name))) == 0 and levels[0] > 160 and levels[1] == 0
        print(f"{name}, face {change.__name__} over in map: {levels[0]} in a set of files, {levels[1]} in a set of bytes")
    rows = mapped(files, drawn)
    rows.to_parquet("set.parquet")
    written = face(datasets.Dataset.from_parquet("set.parquet")[0]["image"])
    listed = face(datasets.Dataset.from_dict({"image": [drawn(Image.open(name))]})[0]["image"])
    print(f"{name}: {written} in Parquet, {listed} by from_dict")
    assert written > 160 and listed > 160
    both = files.map(lambda row: {"image": drawn(row["image"]), "grey": row["image"].convert("L")}, load_from_cache_file=False)
    print(f"{name}: {face(both[0]['image'])} beside a grey image of {face(both[0]['grey'])} from the same call")
    assert face(both[0]["image"]) > 160 and face(both[0]["grey"]) == 0
    copied = face(mapped(files, lambda image: drawn(image.copy()))[0]["image"])
    lazily = face(files.with_transform(lambda rows: {"image": [drawn(image) for image in rows["image"]]})[0]["image"])
    print(f"{name}: {copied} after copy, {lazily} by with_transform")
    assert copied == lazily == 0


def small(image: Image.Image) -> Image.Image:
    image.thumbnail((32, 64))
    return image


sizes = [mapped(rows, small)[0]["image"].size for rows in (files, stored)]
print(f"thumbnail of 32 x 64 in map: {sizes[0]} in a set of files, {sizes[1]} in a set of bytes")
assert sizes == [(64, 128), (32, 64)]
END
