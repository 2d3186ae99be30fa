#!/usr/bin/env bash
# Package: pyarrow 26.0.1, safetensors 0.8.0
# Guess: the numbers of a slice of a column of descriptors are those of its rows; what is saved is what is loaded.
# Seen: `.values` of a slice of a fixed-size list is the whole column, and counts null rows; `.flatten()` has the slice
#   without null rows, so that later rows move up. `safetensors.numpy.save_file` writes a transposed or strided array
#   with the right shape and other numbers, without an error.
# For us: shards hold no nulls and are read as tensors; every array is made contiguous before it is saved.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet pyarrow==26.0.1 safetensors==0.8.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save_file

column = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(12, dtype=np.float32)), 3)
part = column.slice(1, 2)
print("slice of 2 of 4 rows:", len(part.values) // 3, "rows in .values,", len(part.flatten()) // 3, "in .flatten()")
assert (len(part.values), len(part.flatten())) == (12, 6)
gap = pa.array([[1.0, 2.0, 3.0], None, [4.0, 5.0, 6.0]], pa.list_(pa.float32(), 3))
assert (len(gap.values), len(gap.flatten())) == (9, 6)

features = np.arange(6, dtype=np.float32).reshape(2, 3)
save_file({"transposed": features.T, "strided": features[:, ::2]}, "features.safetensors")
loaded = load_file("features.safetensors")
for name, right in (("transposed", features.T), ("strided", features[:, ::2])):
    print(name, "saved", right.tolist(), "loaded", loaded[name].tolist())
    assert loaded[name].shape == right.shape and not np.array_equal(loaded[name], right)
END
