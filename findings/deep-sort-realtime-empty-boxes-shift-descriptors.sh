#!/usr/bin/env bash
# Package: deep-sort-realtime 1.3.2 (with opencv-python-headless 5.0.0.93, scipy 1.17.1)
# Guess: descriptors that are passed with the boxes of a frame stay with their boxes, also where the tracker leaves out
#   boxes without area. The box of a person at the edge becomes one when it is clipped to the frame.
# Seen: such a box is removed from the list of boxes alone. Every person listed after it gets the descriptor of the person
#   before, and the last descriptor is dropped. Where persons stand apart, tracks go on and collect descriptors of other
#   persons, which a search across cameras then finds. Where they stand close, a track jumps to another person, who gets
#   a new number. `others` is shifted in the same way. No error or warning says so.
# For us: nothing is tracked here, and extracted descriptors are stored with the names of their items; the guide warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet opencv-python-headless==5.0.0.93 scipy==1.17.1 numpy==2.4.6
"$folder/venv/bin/python" -m pip install --quiet --no-deps deep-sort-realtime==1.3.2  # it asks for OpenCV with windows
cd "$folder"
venv/bin/python - <<'END'
import numpy as np
from deep_sort_realtime.deepsort_tracker import DeepSort

PERSONS = ("Ann", "Ben", "Cay")
WIDTH, FRAMES, LEAVES = 40, 12, 6  # Ann stands at the left edge, and is out of the frame from frame 6 on


def track(gap: int, whole: bool) -> list[tuple[str, str, str]]:
    """Return, for each track of the last frame, its number, the person at its place and the person of its descriptor."""
    random = np.random.default_rng(0)
    tracker = DeepSort(embedder=None)
    left = np.array([0, 300, 300 + gap])
    for frame in range(FRAMES):
        widths = [0 if frame >= LEAVES else WIDTH, WIDTH, WIDTH]
        boxes = [([int(x), 50, width, 120], 0.9, "person") for x, width in zip(left, widths, strict=True)]
        names, descriptors = PERSONS, list(np.eye(3, 16) + 0.02 * random.standard_normal((3, 16)))
        if whole:  # a caller who removes empty boxes together with what belongs to them
            kept = [number for number, width in enumerate(widths) if width]
            boxes, descriptors, names = ([row[number] for number in kept] for row in (boxes, descriptors, PERSONS))
        tracks = tracker.update_tracks(boxes, embeds=descriptors, others=names)
    seen = [one for one in tracks if one.is_confirmed() and one.time_since_update == 0]
    holders = [PERSONS[one.get_feature()[:3].argmax()] for one in seen]
    assert holders == [one.get_det_supplementary() for one in seen]
    persons = [np.abs(left - one.to_ltrb()[0]).argmin() for one in seen]
    return [(one.track_id, PERSONS[person], holder) for one, person, holder in zip(seen, persons, holders, strict=True)]


for gap in (100, 30):
    for whole in (True, False):
        print(f"{gap} pixels between Ben and Cay; empty boxes removed by", "the caller" if whole else "the tracker")
        found = sorted(track(gap, whole))
        for number, place, descriptor in found:
            print(f"    track {number} is at {place}'s place and holds {descriptor}'s descriptor")
        if whole:
            assert found == [("2", "Ben", "Ben"), ("3", "Cay", "Cay")]
        elif gap == 100:
            assert found == [("2", "Ben", "Ann"), ("3", "Cay", "Ben")]
        else:
            assert found == [("2", "Cay", "Ben"), ("4", "Ben", "Ann")]
END
