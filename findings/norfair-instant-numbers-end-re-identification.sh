#!/usr/bin/env bash
# Package: norfair 2.3.0 (with numpy 1.26.4, so for Python 3.12 or older)
# Guess: a Tracker with `reid_distance_function` and a descriptor in each detection gives persons who come back their old
#   numbers; `initialization_delay=0` only means that numbers are given in the first frame.
# Seen: descriptors are compared for persons in the phase of initialization alone, and without a delay there is no such phase:
#   the function is never called, and each of 10 persons who come back gets a new number. With a delay of one frame all
#   keep theirs. Nor is anybody known again without `reid_hit_counter_max`, which is None by default: a person who has been
#   away longer than `hit_counter_max` is deleted before descriptors are compared. No error or warning says so.
# For us: nothing is tracked here. The guide warns where images are described beside a tracker.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet norfair==2.3.0 scipy==1.15.3 numpy==1.26.4
cd "$folder"
venv/bin/python - <<'END'
import numpy as np
from norfair import Detection, Tracker

PERSONS, DIM, THERE, AWAY, LIMIT = 10, 32, 20, 30, 5  # the last three in frames
random = np.random.default_rng(0)
descriptors = random.standard_normal((PERSONS, DIM))
descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)


def seen(left: float) -> list[Detection]:
    """Return all persons in a row that begins at `left`, with noisy descriptors."""
    detections = []
    for person, descriptor in enumerate(descriptors):
        noisy = descriptor + 0.02 * random.standard_normal(DIM)
        point = np.array([[left, 100.0 * person]])
        detections.append(Detection(point, scores=np.ones(1), embedding=noisy / np.linalg.norm(noisy)))
    return detections


def track(**options) -> tuple[int, int]:
    """Return how many persons have their old number when they come back at another place, and how often it was asked."""
    calls = []

    def distance(new, old) -> float:
        calls.append(1)
        return 1 - float(new.last_detection.embedding @ old.last_detection.embedding)

    tracker = Tracker("euclidean", 50, LIMIT, reid_distance_function=distance, reid_distance_threshold=0.5, **options)
    numbers = []
    for left in (0.0, 2000.0):
        for _ in range(THERE):
            objects = tracker.update(seen(left))
        numbers.append({round(found.estimate[0, 1] / 100): found.id for found in objects})
        for _ in range(AWAY):
            tracker.update()
    before, after = numbers
    assert len(before) == len(after) == PERSONS
    return sum(before[person] == after[person] for person in range(PERSONS)), len(calls)


for delay, memory in ((0, 100), (1, 100), (2, 100), (2, None)):
    kept, calls = track(initialization_delay=delay, reid_hit_counter_max=memory)
    print(f"initialization_delay={delay}, reid_hit_counter_max={memory}: {kept} of {PERSONS} keep their number, {calls} calls")
    assert kept == (0 if delay == 0 or memory is None else PERSONS) and (calls == 0) == (kept == 0)
END
