#!/usr/bin/env bash
# Package: motmetrics 1.4.0 (with numpy 2.4.6, pandas 2.3.3, scipy 1.17.1)
# Guess: with an accumulator per camera, the row OVERALL of `compute_many` scores whether persons keep their numbers from
#   camera to camera, as IDF1 scores whether they keep them from frame to frame.
# Seen: OVERALL takes a person for another one in each camera. A tracker that gives everybody a new number in every camera,
#   and one that exchanges the numbers of all persons, have IDF1 1.00 and no switch, as the perfect one. In one accumulator
#   over all cameras both have 0.33, with three cameras. Only the number of objects, 12 of 4 persons, shows it. In one
#   accumulator IDF1 does not depend on the order of the frames, but MOTA does: 0.93 if camera follows camera, 0.03 in the
#   order of time, where persons whom several cameras see at once switch with every frame.
# For us: nothing is tracked here, and `reid_metrics` takes an identity for the same in every camera; the guide warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet motmetrics==1.4.0 numpy==2.4.6 pandas==2.3.3 scipy==1.17.1
cd "$folder"
venv/bin/python - <<'END'
import motmetrics
import numpy as np

CAMERAS, PERSONS, FRAMES = range(3), range(4), range(10)
METRICS = ["idf1", "num_switches", "num_unique_objects", "mota"]
TRACKERS = {  # the number that a person has in a camera
    "knows all persons again": lambda person, camera: person,
    "knows nobody again": lambda person, camera: len(PERSONS) * camera + person,
    "takes all for others": lambda person, camera: (person + camera) % len(PERSONS),
}
distances = np.where(np.eye(len(PERSONS), dtype=bool), 0, np.nan)  # boxes are right in every frame
host = motmetrics.metrics.create()


def collect(tracker: str, views: list[tuple[int, int]]) -> motmetrics.MOTAccumulator:
    """Return an accumulator of these frames, each a pair of time and camera."""
    accumulator = motmetrics.MOTAccumulator(auto_id=True)
    for _, camera in views:
        numbers = [TRACKERS[tracker](person, camera) for person in PERSONS]
        accumulator.update(list(PERSONS), numbers, distances)
    return accumulator


for tracker in TRACKERS:
    cameras = [collect(tracker, [(frame, camera) for frame in FRAMES]) for camera in CAMERAS]
    table = host.compute_many(cameras, metrics=METRICS, generate_overall=True)
    rows = {"OVERALL": table.loc["OVERALL"]}
    in_time = [(frame, camera) for frame in FRAMES for camera in CAMERAS]
    for order, views in (("camera by camera", sorted(in_time, key=lambda view: view[1])), ("in time", in_time)):
        rows[f"one accumulator, {order}"] = host.compute(collect(tracker, views), metrics=METRICS).iloc[0]
    print("A tracker that", tracker)
    for name, (idf1, switches, objects, mota) in rows.items():
        print(f"    {name:34} IDF1 {idf1:.2f}, {switches:3.0f} switches, {objects:2.0f} objects, MOTA {mota:.2f}")
    assert tuple(rows["OVERALL"]) == (1, 0, 12, 1)
    wrong = tracker != "knows all persons again"
    for name, (idf1, switches, objects, mota) in list(rows.items())[1:]:
        assert np.isclose(idf1, 1 / 3 if wrong else 1) and objects == 4
        assert switches == (0 if not wrong else 116 if name.endswith("time") else 8)
        assert np.isclose(mota, 1 - switches / 120)
END
