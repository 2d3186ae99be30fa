#!/usr/bin/env bash
# Package: supervision 0.31.2, pycocotools 2.0.11 (with opencv-python-headless 5.0.0.93)
# Guess: masks that are saved as COCO or YOLO are the same masks of the same persons when they are read.
# Seen: supervision writes a person whom a pole cuts in two as a crowd (iscrowd = 1), unless told otherwise, and pycocotools
#   leaves crowds out of its scores: a detector that misses this person has an AP of 1, one that finds this person alone
#   has 0. In YOLO files each part is a person. A person in one piece becomes a polygon through the centres of the
#   outermost pixels, and pycocotools fills only what lies inside: 8 % of 16 x 48 pixels are gone. Boxes by
#   mask_to_xyxy end at the last pixel, those of pycocotools behind it.
# For us: masks are image files, and their pixels are used as they are.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet supervision==0.31.2 pycocotools==2.0.11 \
  opencv-python-headless==5.0.0.93 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import contextlib
import io
from pathlib import Path

import cv2
import numpy as np
import supervision
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

# One person in view, and one whose middle is hidden; both 16 x 48 pixels on a frame of 64 x 64.
masks = np.zeros((2, 64, 64), bool)
masks[0, 8:56, 4:20] = True
masks[1, 8:56, 36:52] = True
masks[1, 24:32] = False
Path("images").mkdir()
cv2.imwrite("images/frame.png", np.zeros((64, 64, 3), np.uint8))
boxes = supervision.mask_to_xyxy(masks)
persons = supervision.Detections(xyxy=boxes.astype(float), mask=masks, class_id=np.zeros(2, int))
frames = supervision.DetectionDataset(["person"], ["images/frame.png"], {"images/frame.png": persons})
frames.as_coco(annotations_path="coco.json")
frames.as_yolo(annotations_directory_path="yolo", data_yaml_path="yolo.yaml")

with contextlib.redirect_stdout(io.StringIO()):
    truth = COCO("coco.json")
entries = truth.dataset["annotations"]
read = [truth.annToMask(entry) for entry in entries]
areas = [int(mask.sum()) for mask in read]
print("COCO: pixels saved", masks.sum((1, 2)).tolist(), "read", areas, "iscrowd", [one["iscrowd"] for one in entries])
assert masks.sum((1, 2)).tolist() == [768, 640] and areas == [705, 640]
assert [entry["iscrowd"] for entry in entries] == [0, 1]


def average_precision(found: list[int]) -> float:
    names = {"image_id": entries[0]["image_id"], "category_id": entries[0]["category_id"], "score": 0.9}
    masks = [{**names, "segmentation": coco_mask.encode(np.asfortranarray(read[index]))} for index in found]
    with contextlib.redirect_stdout(io.StringIO()):
        score = COCOeval(truth, truth.loadRes(masks), "segm")
        score.evaluate()
        score.accumulate()
        score.summarize()
    return float(score.stats[0])


for found, expected in (([0, 1], 1), ([0], 1), ([1], 0)):
    precision = average_precision(found)
    print(f"persons found {found}: AP {precision:.3f}")
    assert abs(precision - expected) < 1e-6

back = supervision.DetectionDataset.from_yolo("images", "yolo", "yolo.yaml")
parts = next(iter(back.annotations.values())).mask.sum((1, 2)).tolist()
print("YOLO: persons saved 2, read", len(parts), "with pixels", parts)
assert sorted(parts) == [256, 384, 768]
box, right = boxes[0].tolist(), coco_mask.toBbox(coco_mask.encode(np.asfortranarray(masks[0]))).tolist()
print("box of columns 4 to 19, rows 8 to 55: supervision", box, "pycocotools (x, y, width, height)", right)
assert box == [4, 8, 19, 55] and right == [4, 8, 16, 48]
END
