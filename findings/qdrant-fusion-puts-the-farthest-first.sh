#!/usr/bin/env bash
# Package: qdrant-client 1.20.0, in its in-process mode
# Guess: one vector per modality, and a query that fuses their results, rank alike by cosine and by Euclidean distance while
#   all descriptors have length 1, because each modality alone does.
# Seen: distribution-based fusion (DBSF) takes Euclidean and Manhattan distances for similarities. It adds them up and lists
#   the largest sum first. In a gallery of 100 with two images of each identity, the first right match stands at place 99,
#   by cosine at place 1. With shortlists of ten per modality the answer looks likely: near candidates, the farthest of
#   them in front. No error or warning says so. Fusion by reciprocal ranks (RRF) is right with every distance.
# For us: a model joins the modalities in one descriptor, so there are no rankings to fuse; the guide on search warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet qdrant-client==1.20.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import numpy as np
from qdrant_client import QdrantClient, models

IDENTITIES, SHOTS, DIM = 50, 2, 32
MODALITIES = ("RGB", "TI")
random = np.random.default_rng(0)
centres = random.standard_normal((len(MODALITIES), IDENTITIES, DIM))


def photograph() -> np.ndarray:
    """Return descriptors of length 1, one per modality and identity."""
    seen = centres + 0.7 * random.standard_normal(centres.shape)
    return seen / np.linalg.norm(seen, axis=2, keepdims=True)


def fill(distance: models.Distance) -> QdrantClient:
    """Return a collection of the gallery; entries i, i + 50, ... show identity i."""
    client = QdrantClient(":memory:")
    params = models.VectorParams(size=DIM, distance=distance)
    client.create_collection("gallery", vectors_config=dict.fromkeys(MODALITIES, params))
    shots = np.concatenate(gallery, axis=1)
    points = [
        models.PointStruct(id=entry, vector={name: shots[band, entry].tolist() for band, name in enumerate(MODALITIES)})
        for entry in range(IDENTITIES * SHOTS)
    ]
    client.upsert("gallery", points)
    return client


def places(client: QdrantClient, fusion: models.Fusion, shortlist: int) -> np.ndarray:
    """Return the place of the first right match of each query, from 1."""
    found = []
    for identity in range(IDENTITIES):
        lists = [
            models.Prefetch(query=queries[band, identity].tolist(), using=name, limit=shortlist)
            for band, name in enumerate(MODALITIES)
        ]
        answer = client.query_points("gallery", prefetch=lists, query=models.FusionQuery(fusion=fusion), limit=100)
        found.append([point.id % IDENTITIES for point in answer.points].index(identity) + 1)
    return np.array(found)


gallery, queries = [photograph() for _ in range(SHOTS)], photograph()
for distance in (models.Distance.COSINE, models.Distance.EUCLID, models.Distance.MANHATTAN):
    client = fill(distance)
    for fusion in (models.Fusion.RRF, models.Fusion.DBSF):
        for shortlist in (10, IDENTITIES * SHOTS):
            found = places(client, fusion, shortlist)
            print(f"{distance.value:9} {fusion.value:4} {shortlist:3} per modality: "
                  f"rank-1 {np.mean(found == 1):.2f}, first right match at place {found.mean():.1f}")
            if fusion == models.Fusion.RRF or distance == models.Distance.COSINE:
                assert np.mean(found == 1) > 0.95
            else:
                assert np.mean(found == 1) < 0.1 and found.mean() > (98 if shortlist > 10 else 10)
END
