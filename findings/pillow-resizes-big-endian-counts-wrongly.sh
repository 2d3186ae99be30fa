#!/usr/bin/env bash
# Package: Pillow 13.0.0 (images written by tifffile 2026.3.3)
# Guess: a 16-bit TIFF has the same values whatever its byte order, also after `resize`.
# Seen: a big-endian file opens rightly (mode I;16B), but `resize` with any filter but NEAREST mixes up its bytes:
#   counts of 7000 to 10071 become 433 to 64636 with LANCZOS. A little-endian file is resized rightly.
# For us: thermal cameras write big-endian TIFF. Deep images are made an array before anything is done to them.
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

counts = np.arange(7000, 7000 + 64 * 48, dtype=np.uint16).reshape(48, 64)
found = {}
for order in "<>":
    tifffile.imwrite("thermal.tif", counts, byteorder=order)
    with Image.open("thermal.tif") as image:
        image.load()
        assert (np.asarray(image) == counts).all()
        for name in ("NEAREST", "BILINEAR", "BICUBIC", "LANCZOS", "BOX"):
            small = np.asarray(image.resize((32, 24), Image.Resampling[name]))
            found[order, name] = 6900 <= small.min() <= small.max() <= 10200
            print(image.mode, name, small.min(), small.max())
assert all(right for (order, _), right in found.items() if order == "<")
assert found[">", "NEAREST"]
assert not any(right for (order, name), right in found.items() if order == ">" and name != "NEAREST")
END
