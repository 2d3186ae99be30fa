#!/usr/bin/env bash
# Package: datasets 5.2.0 (with Pillow 13.0.0)
# Guess: a column of images keeps counts of 16 bits, as it does with one band, or refuses what it cannot keep; at the worst
#   a "downcast" to 8 bits cuts off or scales.
# Seen: one band of uint16 comes back as it was. Of three or four bands the low byte is kept: counts come back modulo 256,
#   in a parquet file as well. A person of 8200 counts before a wall of 8100, the warmest in the image, becomes the darkest
#   (8 before 164). One warning, "Downcasting array dtype uint16 to uint8", stands for the whole set. Arrays of shape
#   (height, width, 1), (height, width, 5) or (3, height, width) are refused. A column per band and Array3D keep all counts.
# For us: images are files here; counts need a stated range, but such a column saves 8-bit files, so the guide for data warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --no-compile datasets==5.2.0 pillow==13.0.0 numpy==2.4.6
cd "$folder"
HF_HOME=$folder/home venv/bin/python - <<'END'
import io
import warnings

import datasets
import numpy as np

datasets.disable_progress_bars()
WALL, PERSON = 8100, 8200


def photograph(*bands: int) -> np.ndarray:
    """Return a person in the middle of a wall, in counts."""
    image = np.full((16, 8, *bands), WALL, np.uint16)
    image[4:12, 2:6] = PERSON
    return image


def save(images: list[np.ndarray], feature: object) -> datasets.Dataset:
    """Return the images as they are after a parquet file in memory."""
    file = io.BytesIO()
    features = datasets.Features({"image": feature})
    datasets.Dataset.from_dict({"image": images}, features=features).to_parquet(file)
    open("images.parquet", "wb").write(file.getvalue())
    return datasets.Dataset.from_parquet("images.parquet", features=features)


for bands in ((), (3,), (4,)):
    counts = photograph(*bands)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        image = save([counts] * 20, datasets.Image())[0]["image"]
    back = np.array(image)
    said = {str(one.message) for one in said if "Downcasting" in str(one.message)}
    print(f"{bands[0] if bands else 'one'} band(s) of uint16: mode {image.mode}, the wall of {WALL} counts is "
          f"{back.flat[0]}, the person of {PERSON} is {back[8, 4].flat[0]}; warnings: {said or 'none'}")
    assert back.shape == counts.shape and (back == (counts % 256 if bands else counts)).all()
    assert len(said) == bool(bands) and (back[8, 4].max() < back[0, 0].min()) == bool(bands)

for shape in ((16, 8, 1), (16, 8, 5), (3, 16, 8)):
    try:
        save([np.zeros(shape, np.uint8)], datasets.Image())
    except TypeError as error:
        print(f"{shape} is refused: {error}")
    else:
        raise AssertionError(f"{shape} was not refused")

counts = photograph(3)
per_band = [np.array(save([counts[..., band]], datasets.Image())[0]["image"]) for band in range(3)]
whole = save([counts], datasets.Array3D(counts.shape, "uint16")).with_format("numpy")[0]["image"]
print("a column per band and Array3D keep all counts")
assert (np.stack(per_band, axis=-1) == counts).all() and (whole == counts).all()
END
