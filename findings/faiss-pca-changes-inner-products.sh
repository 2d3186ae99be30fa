#!/usr/bin/env bash
# Package: faiss-cpu 1.15.1
# Guess: "PCA256,Flat" on descriptors of 256 numbers is a rotation: searched by inner product, descriptors of length 1 give
#   the cosines and the order of "Flat".
# Seen: faiss subtracts the mean before it rotates, from queries as well. Euclidean distances stay, inner products do not:
#   of descriptors as a ReLU leaves them, two images of one identity have a median cosine of 0.58 and then 0.15, so that a
#   threshold of 0.4 rejects all, and a quarter of the ten best are others, although no dimension is lost. "L2norm" behind
#   the PCA does not bring them back. "RR256", a rotation without a mean, changes nothing.
# For us: our indices search by Euclidean distance, and no index changes descriptors.
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
scales = 2.0 ** -np.linspace(0, 3, 256)


def descriptors(identities: np.ndarray) -> np.ndarray:
    """Return an image of every identity: features behind a ReLU, scaled to length 1."""
    features = np.maximum((identities + 1.5 * random.standard_normal(identities.shape)) * scales + 0.3, 0)
    return (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)


identities = random.standard_normal((500, 256))
gallery, queries = descriptors(identities.repeat(10, 0)), descriptors(identities[:200])
best = np.argsort(-queries @ gallery.T, axis=1)[:, :10]


def search(description: str, metric: int) -> tuple[float, np.ndarray]:
    """Return recall of the ten best by cosine, and the scores of entries of the query's identity."""
    index = faiss.index_factory(256, description, metric)
    index.train(gallery)
    index.add(gallery)
    scores, found = index.search(queries, len(gallery))
    recall = np.mean([len(set(one) & set(other)) / 10 for one, other in zip(found[:, :10], best)])
    return float(recall), scores[found // 10 == np.arange(200)[:, None]]


for description in ("Flat", "RR256,Flat", "PCA256,Flat", "PCA256,L2norm,Flat"):
    euclidean, distances = search(description, faiss.METRIC_L2)
    product, cosines = search(description, faiss.METRIC_INNER_PRODUCT)
    accepted = (cosines > 0.4).mean()
    print(f"{description}: recall at 10 by Euclidean distance {euclidean:.3f}, by inner product {product:.3f}; same identity: "
          f"squared distance {np.median(distances):.2f}, product {np.median(cosines):.2f}, {accepted:.1%} above 0.4")
    if description.startswith("PCA"):
        assert 0.6 < product < 0.9 and accepted < 0.15 and np.median(cosines) < 0.35
    else:
        assert product > 0.999 and accepted > 0.95 and np.median(cosines) > 0.5
    assert euclidean < 0.9 if "L2norm" in description else euclidean > 0.999
END
