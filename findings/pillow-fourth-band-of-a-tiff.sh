#!/usr/bin/env bash
# Package: Pillow 13.0.0 (images written by tifffile 2026.3.3)
# Guess: a TIFF with the four bands red, green, blue, near infrared opens with four bands, or not at all.
# Seen: it depends on how the fourth band is labelled. "Unspecified": mode RGB, the band is dropped. "Unassociated
#   alpha": RGBA, all values kept. "Associated alpha": RGBA, and red, green and blue are divided by near infrared.
#   Four bands of grey are refused; of two bands of grey the second is dropped.
# For us: near infrared is a file, or a panel, of its own; a fourth channel is never taken for it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import numpy as np
import tifffile
from PIL import Image, UnidentifiedImageError

bands = np.dstack([np.full((8, 8), value, np.uint8) for value in (10, 20, 30, 40)])
expected = {
    "unspecified": ("RGB", [10, 20, 30]),
    "unassalpha": ("RGBA", [10, 20, 30, 40]),
    "assocalpha": ("RGBA", [63, 127, 191, 40]),
}
for label, (mode, values) in expected.items():
    tifffile.imwrite("bands.tif", bands, photometric="rgb", extrasamples=[label])
    with Image.open("bands.tif") as image:
        print(label, image.mode, np.asarray(image)[0, 0].tolist())
        assert (image.mode, np.asarray(image)[0, 0].tolist()) == (mode, values)
tifffile.imwrite("grey.tif", bands, photometric="minisblack", planarconfig="contig")
try:
    Image.open("grey.tif")
except UnidentifiedImageError:
    print("four bands of grey: refused")
else:
    raise SystemExit("four bands of grey are read now")
tifffile.imwrite("two.tif", bands[..., :2], photometric="minisblack", planarconfig="contig")
with Image.open("two.tif") as image:
    print("two bands of grey:", image.mode, np.asarray(image)[0, 0].tolist())
    assert image.mode == "L"
END
