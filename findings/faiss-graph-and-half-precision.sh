#!/usr/bin/env bash
# Package: faiss-cpu 1.15.1
# Guess: an HNSW index answers k = 100 about as well as k = 10; a float16 index takes whatever a float32 one takes.
# Seen: with the default efSearch of 16, recall at k = 100 is below 0.6 without a warning; efSearch = 200 gives above 0.9.
#   The float16 quantiser turns descriptors beyond 65504 into infinity: such a search returns -1 for every neighbour.
# For us: efSearch is at least k, descriptors have norm 1, and -1 never reaches a user.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet faiss-cpu==1.15.1 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import faiss
import numpy as np

random = np.random.default_rng(0)
gallery, queries = (random.standard_normal((count, 64)).astype(np.float32) for count in (5000, 50))
exact, graph = faiss.IndexFlatL2(64), faiss.IndexHNSWFlat(64, 16)
exact.add(gallery)
graph.add(gallery)
truth = exact.search(queries, 100)[1]


def recall() -> float:
    found = graph.search(queries, 100)[1]
    return float(np.mean([len(set(one) & set(other)) / 100 for one, other in zip(found, truth)]))


assert graph.hnsw.efSearch == 16
before = recall()
graph.hnsw.efSearch = 200
print(f"recall at 100: efSearch 16 {before:.2f}, efSearch 200 {recall():.2f}")
assert before < 0.6 < 0.9 < recall()

half = faiss.IndexScalarQuantizer(64, faiss.ScalarQuantizer.QT_fp16)
half.train(gallery)
half.add(gallery * 1e5)
print("float16, descriptors of norm 8e5:", half.search(gallery[:1] * 1e5, 3)[1].tolist())
assert (half.search(gallery[:1] * 1e5, 3)[1] == -1).all()
END
