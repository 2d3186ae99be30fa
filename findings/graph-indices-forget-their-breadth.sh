#!/usr/bin/env bash
# Package: hnswlib 0.8.0, usearch 2.26.6
# Guess: a graph index that is saved and read again answers as before.
# Seen: the breadth of the search is not in the file. hnswlib reads with ef = 10, and Index.restore of usearch with an
#   expansion of 64: recall at 10 falls from above 0.99 to about 0.73 and 0.90, without a word. Setting it again helps.
# For us: faiss keeps efSearch in the file, and recall against exact search is printed when an index is built.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet hnswlib==0.8.0 usearch==2.26.6 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import hnswlib
import numpy as np
from usearch.index import Index

random = np.random.default_rng(0)
gallery = random.standard_normal((20000, 64)).astype(np.float32)
gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
queries = gallery[:200] + random.standard_normal((200, 64)).astype(np.float32) / 16
truth = np.argsort(-(queries @ gallery.T), axis=1)[:, :10]


def recall(found: np.ndarray) -> float:
    return float(np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found, truth)]))


built = hnswlib.Index("ip", 64)
built.init_index(len(gallery), M=16, ef_construction=200, random_seed=0)
built.set_num_threads(1)
built.add_items(gallery)
built.set_ef(400)
built.save_index("hnswlib.bin")
read = hnswlib.Index("ip", 64)
read.load_index("hnswlib.bin")
before, after = (recall(index.knn_query(queries, 10)[0]) for index in (built, read))
print(f"hnswlib: ef {built.ef}, recall {before:.3f}; read again: ef {read.ef}, recall {after:.3f}")
assert (built.ef, read.ef) == (400, 10) and after < 0.85 < 0.98 < before

made = Index(ndim=64, metric="ip", dtype="f32", connectivity=16, expansion_search=400)
made.add(np.arange(len(gallery)), gallery, threads=1)
made.save("usearch.bin")
restored = Index.restore("usearch.bin")
before, after = (recall(index.search(queries, 10).keys) for index in (made, restored))
print(f"usearch: expansion {made.expansion_search}, recall {before:.3f}; "
      f"restored: {restored.expansion_search}, recall {after:.3f}")
assert (made.expansion_search, restored.expansion_search) == (400, 64) and after < 0.95 < 0.98 < before
END
