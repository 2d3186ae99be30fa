#!/usr/bin/env bash
# Package: usearch 2.26.6
# Guess: dtype="i8" and dtype="u8" round descriptors to 8 bits, at a small loss, whatever the metric.
# Seen: "i8" first brings each vector to one length, also for "l2sq" and "ip": a vector and its double are stored
#   alike, at distance 0. "u8" in addition sets what is negative to 0. Of descriptors as a ReLU leaves them, searched by
#   Euclidean distance, both find half of the ten nearest; of signed ones "u8" finds a third by cosine. The floating
#   types "e4m3" and "e5m2", 8 bits as well, find 0.87 or more in every case. Nothing warns.
# For us: our indices keep float32, and recall against exact search is printed when one is built.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet usearch==2.26.6 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import numpy as np
from usearch.index import Index

pair = np.array([[3, -4, 1], [6, -8, 2]], np.float32)
for kind, expected in (("i8", [74, -99, 24]), ("u8", [150, 0, 50])):
    index = Index(ndim=3, metric="l2sq", dtype=kind)
    index.add([0, 1], pair)
    stored, distances = [index.get(key).tolist() for key in (0, 1)], index.search(pair[0], 2).distances.tolist()
    print(kind, "stores", pair.tolist(), "as", stored, "at distances", distances)
    assert stored == [expected, expected] and distances == [0, 0]

random = np.random.default_rng(0)
signed = random.standard_normal((2000, 64)).astype(np.float32)
noise = random.standard_normal((200, 64)).astype(np.float32) / 4


def recall(gallery: np.ndarray, queries: np.ndarray, metric: str, kind: str) -> float:
    if metric == "cos":
        exact = -queries @ (gallery / np.linalg.norm(gallery, axis=1, keepdims=True)).T
    else:
        exact = ((queries[:, None] - gallery) ** 2).sum(-1)
    index = Index(ndim=64, metric=metric, dtype=kind, connectivity=32, expansion_search=800)
    index.add(np.arange(len(gallery)), gallery, threads=1)
    found, right = index.search(queries, 10, threads=1).keys, np.argsort(exact, axis=1)[:, :10]
    return float(np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found, right)]))


positive, queries = np.maximum(signed, 0), signed[:200] + noise
for name, gallery, asked, metric, wrong in (
    ("after a ReLU, Euclidean", positive, np.maximum(queries, 0), "l2sq", ("i8", "u8")),
    ("after a ReLU, cosine", positive, np.maximum(queries, 0), "cos", ()),
    ("signed, cosine", signed, queries, "cos", ("u8",)),
):
    found = {kind: recall(gallery, asked, metric, kind) for kind in ("f32", "e4m3", "e5m2", "i8", "u8")}
    print(f"{name}: recall at 10", {kind: round(value, 2) for kind, value in found.items()})
    assert all(value < 0.7 if kind in wrong else value > 0.85 for kind, value in found.items())
END
