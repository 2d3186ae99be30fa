#!/usr/bin/env bash
# Package: opencv-python-headless 5.0.0.93
# Guess: a higher clipLimit of CLAHE gives more contrast, on an image of 8 bits and on the thermal counts it was made from.
# Seen: the limit that acts is clipLimit x pixels of a tile / number of grey levels, cut to an integer and at least 1. With
#   16 bits there are 65536 levels: on a frame of 640 x 512 in 8 x 8 tiles, limits from 1 to 25 give one and the same image,
#   on a crop of 64 x 128 those from 1 to 1023, and with 8 bits those from 1 to 3.9. Limits of 1 to 4 are the usual ones.
#   The noise is not limited either: of a wall at one temperature 15 counts of noise become more than 6000 in the crop.
# For us: counts become grey levels by a stated range, the same for all images; nothing is equalised.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import cv2
import numpy as np

LIMITS = (1, 2, 3, 3.9, 4, 10, 25, 26, 100, 1023, 1024)


def clahe(image: np.ndarray, limit: float) -> np.ndarray:
    return cv2.createCLAHE(clipLimit=limit, tileGridSize=(8, 8)).apply(image)


def last_like_one(image: np.ndarray) -> float:
    """Return the largest of the limits up to which all images are equal."""
    images = [clahe(image, limit) for limit in LIMITS]
    equal = [bool(np.array_equal(images[0], other)) for other in images]
    return LIMITS[(equal + [False]).index(False) - 1]


# A warm person before a wall that is a little warmer on the right; 15 counts of noise.
random = np.random.default_rng(0)
y, x = np.mgrid[:512, :640]
noise = random.normal(0, 15, (512, 640))
frame = (7000 + x / 4 + 300 * (np.hypot(x - 320, (y - 256) / 2) < 40) + noise).astype(np.uint16)
grey = ((frame - 6900.0) / 700 * 255).clip(0, 255).astype(np.uint8)
crop = (slice(192, 320), slice(288, 352))
cases = {"frame, 16 bits": (frame, 25), "crop, 16 bits": (frame[crop], 1023)}
cases |= {"frame, 8 bits": (grey, 1), "crop, 8 bits": (grey[crop], 3.9)}
for name, (image, expected) in cases.items():
    last = last_like_one(image)
    spread = [round(float(clahe(image, limit).std()), 1) for limit in (1, 4, 40)]
    print(f"{name}: limits 1 to {last} give one image; standard deviation {image.std():.1f}, by limits 1, 4, 40: {spread}")
    assert last == expected

wall = (7000 + noise[:128, :64]).astype(np.uint16)
loud = clahe(wall, 2)
print(f"wall, 16 bits, limit 2: noise of {wall.std():.1f} counts becomes {loud.std():.0f}")
assert wall.std() < 16 and loud.std() > 6000
END
