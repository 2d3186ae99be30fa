#!/usr/bin/env bash
# Package: ImageHash 4.3.2 (with Pillow 12.3.0)
# Guess: a perceptual hash finds near-duplicates among thermal images of 16 bits as it does among images of 8 bits, or
#   refuses them.
# Seen: average_hash, phash, dhash and whash first make the image one of 8 bits, which cuts counts off at 255. Counts of a
#   thermal camera lie far above: each image becomes white, and images of 40 scenes have one hash. Whoever removes images
#   with equal hashes keeps a single one. Scaled by their range, the same images have 40 hashes, and noise of a second
#   exposure does not change which is nearest.
# For us: `examples.prepare.inspect` compares the bytes of files alone. The guide says to hash what the range makes of them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet ImageHash==4.3.2 pillow==12.3.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import imagehash
import numpy as np
from PIL import Image

SCENES, LOW, HIGH = 40, 7900, 8700
random = np.random.default_rng(0)
# Scenes of 8 x 4 areas of different warmth, and two exposures of each, with the noise of the camera.
scenes = np.kron(random.uniform(8000, 8600, (SCENES, 8, 4)), np.ones((16, 16)))
exposures = [(scenes + random.normal(0, 8, scenes.shape)).astype(np.uint16) for _ in range(2)]


def scaled(counts: np.ndarray) -> np.ndarray:
    """Return grey levels from 0 to 255 for counts from LOW to HIGH."""
    return np.clip((counts.astype(float) - LOW) * 255 / (HIGH - LOW), 0, 255).astype(np.uint8)


for function in (imagehash.average_hash, imagehash.phash, imagehash.dhash, imagehash.whash):
    for name, convert in (("16 bits", np.asarray), ("scaled by their range", scaled)):
        first, second = ([function(Image.fromarray(convert(image))) for image in images] for images in exposures)
        different = len({str(code) for code in first})
        nearest = [min(range(SCENES), key=lambda other: code - first[other]) for code in second]
        right = np.mean(np.array(nearest) == np.arange(SCENES))
        print(f"{function.__name__:12} {name:21}: {different} hashes of {SCENES} scenes, nearest is the scene {right:.3f}")
        assert (different, right) == (1, 1 / SCENES) if name == "16 bits" else (different == SCENES and right > 0.95)
END
