#!/usr/bin/env bash
# Package: Pillow 13.0.0 (images written by tifffile 2026.3.3)
# Guess: TIFF's "white is zero", which black-hot thermal images have, is either applied or it is not.
# Seen: applied with 8 bits (218 is read as 37), not applied with 16 bits (7000 stays 7000). Nothing tells which.
# For us: one camera exported at both depths gives images that are negatives of one another.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import numpy as np
import tifffile
from PIL import Image

for kind, value in ((np.uint8, 218), (np.uint16, 7000)):
    tifffile.imwrite("hot.tif", np.full((16, 16), value, kind), photometric="miniswhite")
    with tifffile.TiffFile("hot.tif") as file:
        assert file.pages[0].photometric.name == "MINISWHITE"
    with Image.open("hot.tif") as image:
        read = int(np.asarray(image)[0, 0])
        print(np.dtype(kind), image.mode, value, "is read as", read)
    assert read == (255 - value if kind is np.uint8 else value)
END
