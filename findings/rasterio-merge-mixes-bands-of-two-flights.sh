#!/usr/bin/env bash
# Package: rasterio 1.4.4
# Guess: by merge each pixel of a mosaic comes from one image, the first that covers it, because the files name no nodata.
# Seen: without nodata merge takes 0 for it, and asks each band on its own: where one band of the first image is 0, as
#   near infrared over water, that band comes from the next image. A lake whose red is of one flight and whose near
#   infrared is of another has a vegetation index of 0.73 instead of -1. A mask that says that all pixels are valid
#   changes nothing. If places are to be found again in another flight, the mosaic of one flight then holds pixels of the
#   other, which a model can match. With a type that has a number to spare, dtype="int16" and nodata=-1, all is right.
# For us: an image is read from one file and nothing is merged here; the guide on data names these two arguments.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet rasterio==1.4.4 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import numpy as np
import rasterio
from rasterio.merge import merge
from rasterio.transform import from_origin

random = np.random.default_rng(0)
shape = {"driver": "GTiff", "width": 128, "height": 128, "count": 4, "dtype": "uint8", "photometric": "RGB", "alpha": "NO"}
shape |= {"transform": from_origin(0, 128, 1, 1), "crs": "EPSG:32632"}
# Red, green, blue and near infrared of two flights: all values of the first are even, all of the second odd.
flights = [(random.integers(10, 120, (4, 128, 128)) * 2 + number).astype(np.uint8) for number in (0, 1)]
lake = np.zeros((128, 128), bool)
lake[40:90, 20:110] = True
flights[0][3, lake] = 0
flights[0][:3, lake] //= 16
flights[0][:3, lake] *= 2


def mosaic(named: int | None, mask: bool, **options) -> tuple[int, float]:
    """Return the number of pixels that come from both flights, and the mean vegetation index of the lake."""
    names = [f"{number} {named} {mask}.tif" for number in (0, 1)]
    for name, pixels in zip(names, flights):
        with rasterio.open(name, "w", nodata=named, **shape) as file:
            file.write(pixels)
            if mask:
                file.write_mask(True)
    pixels = merge(names, **options)[0].astype(float)
    red, infrared = pixels[0, lake], pixels[3, lake]
    return int((pixels % 2).any(0).sum() - (pixels % 2).all(0).sum()), ((infrared - red) / (infrared + red)).mean()


def shown(mixed: int, index: float) -> str:
    return f"{mixed} pixels of two flights, vegetation index of the lake {index:.2f}"


for nodata, mask in ((None, False), (None, True), (0, False)):
    mixed, index = mosaic(nodata, mask)
    print(f"nodata {nodata}, {'a' if mask else 'no'} mask: {shown(mixed, index)}")
    assert mixed == lake.sum() and index > 0.7
mixed, index = mosaic(None, False, dtype="int16", nodata=-1)
print(f"int16 and nodata -1: {shown(mixed, index)}")
assert mixed == 0 and index == -1
END
