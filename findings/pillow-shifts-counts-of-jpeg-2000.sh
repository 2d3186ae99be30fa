#!/usr/bin/env bash
# Package: Pillow 13.0.0 (images written by imagecodecs 2026.3.6)
# Guess: a JPEG 2000 of 12-bit thermal counts gives these counts, as a PNG or TIFF does.
# Seen: mode I;16, every count multiplied by 16: 629 is read as 10064. With 16 bits the counts are right.
# For us: a range of counts in degrees or photons does not fit such a file; inspect names files of this kind.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pillow==13.0.0 imagecodecs==2026.3.6 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import io

import imagecodecs
import numpy as np
from PIL import Image

counts = np.arange(300, 630, dtype=np.uint16).reshape(15, 22)
for bits, factor in ((12, 16), (14, 4), (16, 1)):
    coded = imagecodecs.jpeg2k_encode(counts, bitspersample=bits, reversible=True)
    assert (imagecodecs.jpeg2k_decode(coded) == counts).all()
    with Image.open(io.BytesIO(coded)) as image:
        read = np.asarray(image)
        print(bits, "bits:", image.mode, "629 is read as", read.max())
    assert (read == factor * counts).all()
END
