#!/usr/bin/env bash
# Package: sqlite-vec 0.1.9 (with apsw 3.54.1.0, whose SQLite loads extensions)
# Guess: a table with a column of descriptors per modality bears samples without thermal image. It accepts no NULL. Zeros in
#   its place put such a sample somewhere in a ranking by cosine, and leave all others where they are.
# Seen: the distance of zeros is not a number, and comparisons with it mislead the search, which reads 1024 rows at a time. If
#   a block begins with zeros, the answer lacks this block and all before it: with zeros in row 8193 of 10240 alone, nine
#   of ten queries miss their person. If the last block begins with zeros, they lead every answer. Elsewhere in a block
#   zeros do no harm, unless a filter by camera makes them the first row that passes: then one query misses its person,
#   and the same query from another camera does not. No error or warning says so. By Euclidean distance, which orders
#   descriptors of length 1 alike, zeros do no harm.
# For us: a joined descriptor has zeros for an absent modality, and is not all zeros while one modality is there. `nearest`
#   gives an entry of zeros the squared distance 1 by cosine, and leaves the others where they are. The guide warns.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet sqlite-vec==0.1.9 apsw==3.54.1.0 numpy==2.4.6
cd "$folder"
venv/bin/python - <<'END'
import apsw
import numpy as np
import sqlite_vec

SAMPLES, BLOCK, DIM, CAMERAS, QUERIES = 10240, 1024, 32, 4, 200
random = np.random.default_rng(0)


def scaled(rows: np.ndarray) -> np.ndarray:
    """Return rows of length 1 in float32."""
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


rgb, thermal = (scaled(random.standard_normal((SAMPLES, DIM))) for _ in range(2))
asked = random.choice(SAMPLES, QUERIES, replace=False)  # rows of the right matches
queries = scaled(thermal[asked] + 0.05 * random.standard_normal((QUERIES, DIM)))


def fill(absent: list[int], metric: str) -> apsw.Connection:
    """Return a table of all samples; those in `absent` have no thermal image."""
    table = apsw.Connection(":memory:")
    table.enable_load_extension(True)
    table.load_extension(sqlite_vec.loadable_path())
    columns = ", ".join(f"{name} float[{DIM}] distance_metric={metric}" for name in ("rgb", "ti"))
    table.execute(f"CREATE VIRTUAL TABLE gallery USING vec0({columns}, camera integer)")
    filled = thermal.copy()
    filled[absent] = 0
    with table:
        table.executemany(
            "INSERT INTO gallery (rowid, rgb, ti, camera) VALUES (?, ?, ?, ?)",
            ((row, rgb[row].tobytes(), filled[row].tobytes(), row % CAMERAS) for row in range(SAMPLES)),
        )
    return table


def answers(table: apsw.Connection, where: str = "") -> np.ndarray:
    """Return the ten rows found for each query."""
    search = f"SELECT rowid FROM gallery WHERE ti MATCH ? AND k = 10 {where} ORDER BY distance"
    return np.array([[row for (row,) in table.execute(search, (query.tobytes(),))] for query in queries])


def found(table: apsw.Connection, where: str = "") -> np.ndarray:
    """Return which queries have their right match among the ten rows found."""
    return (answers(table, where) == asked[:, None]).any(axis=1)


table = fill([], "cosine")
try:
    table.execute("INSERT INTO gallery (rowid, rgb, ti, camera) VALUES (-1, ?, NULL, 0)", (rgb[0].tobytes(),))
    raise SystemExit("NULL is accepted")
except apsw.SQLError as error:
    print("no thermal image:", error)

for metric in ("cosine", "l2"):
    for absent in ([], [0], [700], [4096], [8192]):
        share = found(fill(absent, metric)).mean()
        print(f"{metric:6} zeros in row {absent[0] + 1 if absent else 'none'}: right match in ten {share:.2f}")
        last = absent[0] // BLOCK if absent and absent[0] % BLOCK == 0 and metric == "cosine" else -1
        assert share == np.mean(asked // BLOCK > last)

table = fill([9216], "cosine")  # the first sample of the last block
assert (answers(table)[:, 0] == 9216).all()
print("cosine zeros in row 9217: they are the nearest to all queries")

table, left = fill([8193], "cosine"), asked % CAMERAS > 1  # the right matches are from the cameras 2 and 3
for camera in (0, 1):  # of the query; without camera 0, row 8194 is the first of its block
    share = found(table, f"AND camera != {camera}")[left].mean()
    print(f"cosine zeros in row 8194: queries from camera {camera} have the right match in ten {share:.2f}")
    assert share < 0.2 if camera == 0 else share == 1
END
