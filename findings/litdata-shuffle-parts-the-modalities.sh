#!/usr/bin/env bash
# Package: litdata 0.2.76 (with torch 2.13.0)
# Guess: two sets that were written in one order, RGB and thermal, stay paired in a ParallelStreamingDataset, shuffled or not:
#   all streams have the same seed by default.
# Seen: the seed shuffles chunks and then the samples within them, and a chunk ends at a number of bytes. An RGB image has
#   three times the bytes of a thermal one, so the two sets have different chunks, and the same seed gives different orders:
#   of 400 pairs one is of one sample, and 2 % are of one person. Unshuffled, all pairs are right, and so are they shuffled
#   while each set fits in one chunk, as in a trial, or with chunks of a number of samples (chunk_size=50). No error or
#   warning says so.
# For us: an item holds the files of all its modalities, and items are shuffled. The guide on data warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 litdata==0.2.76 numpy==2.4.6
cd "$folder"
cat > pairs.py <<'END'
import os

import litdata
import numpy as np
from litdata.streaming.cache import Cache

PERSONS, IMAGES = 100, 4
BANDS = {"rgb": 3, "thermal": 1}


def pairs(name: str, shuffle: bool, **chunks) -> tuple[float, float]:
    """Return the shares of pairs of one sample and of one person, and print them with the numbers of chunks."""
    folders = [f"{name}-{modality}" for modality in BANDS]
    for folder, bands in zip(folders, BANDS.values()):
        if not os.path.exists(folder):
            writer = Cache(folder, **chunks)
            for number in range(PERSONS * IMAGES):
                writer[number] = {"number": number, "pixels": np.full((bands, 64, 32), number % 256, np.uint8)}
            writer.done()
            writer.merge()
    streams = [litdata.StreamingDataset(folder, shuffle=shuffle) for folder in folders]
    numbers = [[int(first["number"]), int(second["number"])] for first, second in litdata.ParallelStreamingDataset(streams)]
    first, second = np.array(numbers).T
    assert sorted(first) == sorted(second) == list(range(PERSONS * IMAGES))
    samples, persons = (first == second).mean(), (first // IMAGES == second // IMAGES).mean()
    counts = [sum(file.endswith(".bin") for file in os.listdir(folder)) for folder in folders]
    order = "shuffled" if shuffle else "in order"
    print(f"{counts[0]} and {counts[1]} chunks, {order}: {samples:.3f} of the pairs of one sample, {persons:.3f} of one person")
    return samples, persons


assert pairs("small", True, chunk_bytes="64MB") == (1, 1)
assert pairs("large", False, chunk_bytes="512KB") == (1, 1)
samples, persons = pairs("large", True, chunk_bytes="512KB")
assert samples < 0.03 and persons < 0.05
assert pairs("even", True, chunk_size=50) == (1, 1)
END
venv/bin/python -W ignore pairs.py
