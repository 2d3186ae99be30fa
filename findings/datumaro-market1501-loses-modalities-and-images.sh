#!/usr/bin/env bash
# Package: datumaro 1.13.12
# Guess: a folder in the layout of Market-1501 whose names end with the modality is read whole, or refused; and a set that
#   is written in this layout has as many images as before.
# Seen: what follows the five numbers of a name becomes the name of the item, and a second item of the same name is left
#   out: 240 images `0001_c1s1_000151_00_rgb.jpg` of 80 samples are read as three items, `_rgb`, `_ni` and `_ti`, all of
#   person 1. Without the ending all 80 are read. Export without `frame_id` gives each image of a person in a camera the
#   frame 0, and so one name: of 80 images 20 are left, and the list names each of them four times. Its code counts
#   frames, but keeps the counts under two strings and looks for them under three values. No error or warning says so.
# For us: every file is read or named, and two files with one stem in a folder are refused. The guide warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet datumaro==1.13.12 pillow==12.3.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
from pathlib import Path

import numpy as np
from datumaro.components.dataset import Dataset
from datumaro.components.dataset_base import DatasetItem
from datumaro.components.media import Image
from PIL import Image as PillowImage

PERSONS, CAMERAS, FRAMES = 10, 2, 4
SAMPLES = [(person, camera, frame) for person in range(PERSONS) for camera in range(CAMERAS) for frame in range(FRAMES)]


def written(name: str, endings: tuple[str, ...]) -> str:
    """Write a set with one image per sample and ending in the layout of Market-1501."""
    target = Path(name) / "bounding_box_test"
    target.mkdir(parents=True)
    for number, (person, camera, frame) in enumerate(SAMPLES):
        for ending in endings:
            image = PillowImage.new("L", (4, 8), number)
            image.save(target / f"{person + 1:04}_c{camera + 1}s1_{frame + 151:06}_00{ending}.jpg")
    return name


for name, endings in (("one", ("",)), ("three", ("_rgb", "_ni", "_ti"))):
    read = Dataset.import_from(written(name, endings), "market1501")
    persons = {item.attributes["person_id"] for item in read}
    images = len(SAMPLES) * len(endings)
    print(f"names ending with {endings}: {images} images, {len(read)} items of {len(persons)} persons")
    assert len(read) == (len(SAMPLES) if endings == ("",) else 3) and len(persons) == (PERSONS if endings == ("",) else 1)
print("the items:", sorted(item.id for item in read))

for with_frames in (True, False):
    items = []
    for number, (person, camera, frame) in enumerate(SAMPLES):
        attributes = {"person_id": f"{person + 1:04}", "camera_id": camera, "track_id": 1, "bbox_id": 0}
        attributes |= {"frame_id": frame} if with_frames else {}
        image = Image.from_numpy(data=np.full((8, 4, 3), number, np.uint8))
        items.append(DatasetItem(id=f"image{number}", subset="test", media=image, attributes=attributes))
    target = f"written_{with_frames}"
    Dataset.from_iterable(items, media_type=Image).export(target, "market1501", save_media=True)
    files = list(Path(target, "bounding_box_test").iterdir())
    listed = Path(target, "images_test.txt").read_text().split()
    print(f"export {'with' if with_frames else 'without'} frame_id: {len(files)} files, {len(listed)} lines in the list")
    assert len(listed) == len(SAMPLES)
    assert len(files) == len(set(listed)) == (len(SAMPLES) if with_frames else PERSONS * CAMERAS)
END
