#!/usr/bin/env bash
# Package: voyager 2.2.3, hnswlib 0.8.0
# Guess: by inner product voyager, which contains hnswlib's code, finds what hnswlib finds with the same M and ef.
# Seen: it does while all descriptors have one length. Where lengths vary (log-normal, by 0.3) it finds four of the ten best
#   and hnswlib all ten. Sorted by length before they are added, voyager finds them, too. The distances that come
#   back are right for what was found, so nothing shows that better ones were missed.
# For us: our indices search by Euclidean distance, and recall against exact search is printed when one is built.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet voyager==2.2.3 hnswlib==0.8.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import hnswlib
import numpy as np
from voyager import Index, Space

random = np.random.default_rng(0)
directions = random.standard_normal((4000, 64)).astype(np.float32)
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
queries = directions[:200] + random.standard_normal((200, 64)).astype(np.float32) / 16
lengths = np.exp(random.normal(0, 0.3, (4000, 1))).astype(np.float32)


def by_voyager(gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = Index(Space.InnerProduct, 64, M=16, ef_construction=200)
    index.add_items(gallery, num_threads=1)
    return index.query(queries, 10, query_ef=200, num_threads=1)


def by_hnswlib(gallery: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    index = hnswlib.Index("ip", 64)
    index.init_index(len(gallery), M=16, ef_construction=200)
    index.add_items(gallery, num_threads=1)
    index.set_ef(200)
    return index.knn_query(queries, 10)


def recall(library, gallery: np.ndarray) -> float:
    found, distances = library(gallery)
    products = queries @ gallery.T
    assert np.allclose(distances, 1 - np.take_along_axis(products, found.astype(int), 1), atol=1e-4)
    right = np.argsort(-products, axis=1)[:, :10]
    return float(np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found, right)]))


gallery = directions * lengths
cases = {"length 1": directions, "lengths as they come": gallery, "sorted by length": gallery[np.argsort(lengths[:, 0])]}
for name, vectors in cases.items():
    first, second = recall(by_voyager, vectors), recall(by_hnswlib, vectors)
    print(f"{name}: recall at 10 of voyager {first:.3f}, hnswlib {second:.3f}")
    assert second > 0.95 and (first < 0.6 if name == "lengths as they come" else first > 0.95)
END
