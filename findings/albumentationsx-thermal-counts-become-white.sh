#!/usr/bin/env bash
# Package: albumentationsx 2.5.1 (with torch 2.13.0 and opencv-python-headless 5.0.0.93)
# Guess: a transform of pixels either works on thermal counts of 16 bits, as flips and crops do, or refuses them.
# Seen: three things happen. Blur and GaussianBlur keep counts; InvertImg and GaussNoise raise an error; and CLAHE, Downscale,
#   MedianBlur, ImageCompression, AutoContrast and others return float32 numbers cut off at 1: counts of 6800 to 7200, with
#   a person in them, become white. RandomGamma also returns float32, of another scale. Normalize divides counts by 255.
#   Nothing warns. Counts that are mapped to grey levels first pass all of them with the person.
# For us: counts become numbers from 0 to 1, by a stated range, before an image is augmented.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 albumentationsx==2.5.1 \
  opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$folder"
NO_ALBUMENTATIONS_UPDATE=1 venv/bin/python - <<'END'
import albumentations
import numpy as np

random = np.random.default_rng(0)
counts = random.integers(6800, 6900, (128, 64, 1)).astype(np.uint16)
person = (slice(24, 104), slice(20, 44))
counts[person] += 300
grey = ((counts - 6800.0) / 400 * 255).astype(np.uint8)


def transformed(name: str, image: np.ndarray) -> np.ndarray:
    transform = getattr(albumentations, name)(p=1)
    return albumentations.Compose([transform], seed=0, telemetry=False)(image=image)["image"]


def contrast(image: np.ndarray) -> float:
    """Return how far the person is above the median, as a share of the median."""
    image = image.astype(float)
    return float(image[person].mean() / np.median(image[:16]) - 1)


for name in ("HorizontalFlip", "Blur", "GaussianBlur"):
    print(f"{name}: {transformed(name, counts).dtype}")
    assert transformed(name, counts).dtype == np.uint16
for name in ("InvertImg", "GaussNoise"):
    try:
        transformed(name, counts)
    except (KeyError, ValueError) as error:
        print(f"{name}: {type(error).__name__}")
    else:
        raise AssertionError(name)
print(f"person above the wall by {contrast(counts):.3f} in counts, {contrast(grey):.2f} in grey levels")
for name in ("CLAHE", "Downscale", "MedianBlur", "ImageCompression", "AutoContrast", "Posterize"):
    white, right = transformed(name, counts), transformed(name, grey)
    print(f"{name}: {white.dtype}, from {white.min():.2f} to {white.max():.2f}, person by "
          f"{contrast(white):.3f}; of grey levels {right.dtype}, person by {contrast(right):.2f}")
    assert white.dtype == np.float32 and white.min() > 0.8 and abs(contrast(white)) < 0.01
    assert right.dtype == np.uint8 and contrast(right) > 1
gamma, normal = transformed("RandomGamma", counts), transformed("Normalize", counts)
print(f"RandomGamma: {gamma.dtype} up to {gamma.max():.0f}; Normalize: {normal.dtype} up to {normal.max():.0f}")
assert gamma.dtype == np.float32 and gamma.max() > 1000 and normal.max() > 100
END
