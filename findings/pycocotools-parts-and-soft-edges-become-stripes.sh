#!/usr/bin/env bash
# Package: pycocotools 2.0.11, faster-coco-eval 1.8.0 (with opencv-python-headless 5.0.0.93)
# Guess: encode takes what is not 0 as the person, as numpy does, or refuses a mask with more than two values.
# Seen: both libraries begin a new run at every change of value, and take every other run as the person. In a mask of
#   parts, as human parsing gives (1 head, 2 torso, 3 legs), the torso becomes background: of 1152 pixels 768 are left,
#   in the same box. A mask of 0 and 255 that was made smaller by averages has grey edges: it becomes stripes, whose
#   box is as high as the frame, and whose overlap with the person is 0.39. Nothing warns. With `mask > 0` or
#   `mask > 127` all is right.
# For us: a mask of several values is cut at 127, and refused if all its pixels are on one side of it.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pycocotools==2.0.11 faster-coco-eval==1.8.0 \
  opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import cv2
import faster_coco_eval.core.mask as faster
import numpy as np
import pycocotools.mask as original

# A person of three parts, each 16 x 24 pixels, and a person as an ellipse whose mask is made four times smaller.
parts = np.zeros((64, 64), np.uint8)
for part, top in enumerate((8, 24, 40), 1):
    parts[top : top + 16, 20:44] = part
large = cv2.ellipse(np.zeros((256, 256), np.uint8), (128, 128), (50, 100), 0, 0, 360, 255, -1)
soft = cv2.resize(large, (64, 64), interpolation=cv2.INTER_AREA)

for library in (original, faster):
    print(library.__name__)

    def encoded(mask: np.ndarray) -> tuple[int, list[int], float]:
        """Return area, box and overlap with the same mask at the threshold of 127, or 0 for parts."""
        runs = library.encode(np.asfortranarray(mask, np.uint8))
        right, read = mask > (127 if mask.max() > 3 else 0), library.decode(runs) > 0
        overlap = (right & read).sum() / (right | read).sum()
        return int(library.area(runs)), library.toBbox(runs).astype(int).tolist(), float(overlap)

    for name, mask in (("parts", parts), ("parts > 0", parts > 0), ("soft", soft), ("soft > 127", (soft > 127) * 255)):
        print(f"    {name}: area {encoded(mask)[0]}, box {encoded(mask)[1]}, overlap {encoded(mask)[2]:.2f}")
    assert encoded(parts) == (768, [20, 8, 24, 48], 2 / 3)
    assert not library.decode(library.encode(np.asfortranarray(parts)))[24:40].any()
    assert encoded(parts > 0) == (1152, [20, 8, 24, 48], 1)
    (_, top, _, height), overlap = encoded(soft)[1:]
    assert top == 0 and height == 64 and overlap < 0.5
    assert encoded((soft > 127) * 255)[::2] == (int((soft > 127).sum()), 1)
END
