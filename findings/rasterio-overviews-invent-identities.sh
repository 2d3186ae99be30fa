#!/usr/bin/env bash
# Package: rasterio 1.4.4 (its wheel carries GDAL 3.10.3)
# Guess: read(out_shape=..., resampling=...) makes the image smaller from its pixels, by the method that is asked for.
# Seen: where the file has overviews, smaller copies of itself, these are read, made by whatever method they were saved with.
#   The driver "COG" saves them unasked, interpolated: an aerial mask of 100 identities, read at half the size by
#   "nearest" or "mode", has 455 numbers that no identity has, some above the largest. build_overviews keeps every
#   nth pixel unless told otherwise: an "average" of 4 x 4 thermal counts is one of them, with all its noise. Opened
#   with OVERVIEW_LEVEL="NONE", or saved with overview_resampling="nearest", the identities are right.
# For us: of a file with several pages the first is read, which is the full size, and made smaller here.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet rasterio==1.4.4 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import numpy as np
import rasterio
from rasterio.enums import Resampling
from rasterio.transform import from_origin

print("GDAL", rasterio.__gdal_version__)
random = np.random.default_rng(0)
shape = {"width": 1024, "height": 1024, "count": 1, "dtype": "uint16"}
shape |= {"transform": from_origin(0, 1024, 1, 1), "crs": "EPSG:32632"}
identities = np.zeros((1024, 1024), np.uint16)
for number, (y, x) in enumerate(random.integers(0, 1000, (100, 2)), 1):
    identities[y : y + 24, x : x + 10] = 10 * number


def smaller(path: str, size: int, method: Resampling, **options: str) -> np.ndarray:
    with rasterio.open(path, **options) as file:
        return file.read(1, out_shape=(size, size), resampling=method)


def invented(method: Resampling, **options: str) -> int:
    found = np.setdiff1d(smaller("identities.tif", 512, method, **options), identities)
    print("    " + method.name, options, len(found), "numbers of no identity, largest", found.max(initial=0))
    return len(found)


for driver, saved in (("GTiff", {}), ("COG", {}), ("COG", {"overview_resampling": "nearest"})):
    with rasterio.open("identities.tif", "w", driver=driver, **shape, **saved) as file:
        file.write(identities, 1)
    with rasterio.open("identities.tif") as file:
        assert np.array_equal(file.read(1), identities)
    print(driver, saved)
    least, most = (300, 1000) if driver == "COG" and not saved else (0, 0)
    assert all(least <= invented(method) <= most for method in (Resampling.nearest, Resampling.mode))
    assert invented(Resampling.nearest, OVERVIEW_LEVEL="NONE") == 0

counts = (27315 + random.integers(-500, 500, (1024, 1024))).astype(np.uint16)
with rasterio.open("thermal.tif", "w", driver="GTiff", **shape) as file:
    file.write(counts, 1)
    file.build_overviews([2, 4])
asked = smaller("thermal.tif", 256, Resampling.average)
pixels = smaller("thermal.tif", 256, Resampling.average, OVERVIEW_LEVEL="NONE")
means = counts.reshape(256, 4, 256, 4).mean((1, 3))
print(f"thermal noise of {counts.std():.0f} counts, mean of 4 x 4: {means.std():.0f}; "
      f"rasterio by average {asked.std():.0f}, without overviews {pixels.std():.0f}")
assert asked.std() > 3.5 * means.std() and abs(pixels.std() - means.std()) < 1
END
