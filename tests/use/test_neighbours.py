"""Search in shards: exact search, and faiss with its measured recall and its limits reported."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from stmi_layers.search import nearest
from stmi_layers.training import (
    build_index,
    exact_search,
    faiss_files,
    faiss_index,
    open_index,
    open_shards,
    unlabelled,
)
from stmi_layers.training.files import locked
from stmi_layers.training.neighbours import measure_recall
from stmi_layers.training.shards import Extraction, Shards, shard_path, write_record, write_shard

KINDS = ("exact", "ivf", "hnsw")


def vectors_of(rows: int, width: int = 16, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(-(-rows // 10), width, generator=generator).repeat_interleave(10, dim=0)[:rows]
    return F.normalize(centres + 0.5 * torch.randn(rows, width, generator=generator))


def write(folder: Path, vectors: Tensor, size: int = 100, fingerprint: str = "model") -> Shards:
    record = Extraction(fingerprint, {"D": vectors.shape[1]}, len(vectors), size, "items")
    write_record(folder, record)
    for number, rows in enumerate(vectors.split(size)):
        names = [f"item {number * size + row}" for row in range(len(rows))]
        write_shard(shard_path(folder, number), {"D": rows}, unlabelled(names, [()] * len(rows)), {})
    return open_shards(folder)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Shards:
    return write(tmp_path_factory.mktemp("shards"), vectors_of(1050))


@pytest.mark.parametrize("k", [1, 10, 2000])
def test_exact_search_is_that_of_all_rows_at_once(shards: Shards, k: int):
    gallery = torch.cat([shards.vectors(number, "D") for number in range(len(shards))])
    queries = torch.cat([vectors_of(70, seed=1), gallery[[3, 1049]]])
    rows, distances = exact_search(shards, "D")(queries, k)
    expected, expected_distances = nearest(queries, gallery, k)
    assert torch.equal(rows, expected)
    torch.testing.assert_close(distances, expected_distances)
    assert rows.shape == (72, min(k, 1050))
    assert distances[-2:, 0].tolist() == [0, 0]


def test_copies_are_listed_by_their_row(tmp_path: Path):
    copies = F.normalize(torch.randn(1, 8)).expand(30, 8)
    rows, distances = exact_search(write(tmp_path, copies, size=7), "D")(copies[:1], 5)
    assert (rows.tolist(), distances.tolist()) == ([[0, 1, 2, 3, 4]], [[0.0] * 5])


@pytest.mark.parametrize("kind", KINDS)
def test_faiss_gives_k_rows_and_their_distances(kind, shards: Shards):
    pytest.importorskip("faiss")
    record = build_index(shards, "D", kind)
    queries = vectors_of(8, seed=1)
    # More than the 128 of efSearch, and more than a few inverted lists hold.
    rows, distances = open_index(shards, "D", kind)[1](queries, 300)
    assert rows.shape == (8, 300)
    assert (rows >= 0).all()
    assert all(len(set(row)) == 300 for row in rows.tolist())
    gallery = torch.cat([shards.vectors(number, "D") for number in range(len(shards))])
    truth = (queries[:, None] - gallery[rows]).square().sum(dim=-1)
    torch.testing.assert_close(distances, truth, rtol=1e-4, atol=1e-5)
    assert record.rows == 1050
    expected = exact_search(shards, "D")(queries, 300)[0]
    shared = sum(len({*one} & {*other}) for one, other in zip(rows.tolist(), expected.tolist(), strict=True)) / 2400
    assert shared == 1 if kind == "exact" else shared > 0.6


def test_recall_is_measured_against_exact_search(shards: Shards):
    pytest.importorskip("faiss")
    record = build_index(shards, "D", "ivf", queries=50)
    saved = json.loads((faiss_index.index_folder(shards, "ivf", "D") / "index.json").read_text())
    assert (saved["recall"], saved["queries"]) == (record.recall, 50)
    assert 0.3 < record.recall < 1
    exact = exact_search(shards, "D")
    assert measure_recall(shards, "D", exact, 50) == 1

    def half(queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
        rows, distances = exact(queries, k)
        rows[:, 6:] = -1  # of the row itself and ten neighbours, five are left
        return rows, distances

    assert measure_recall(shards, "D", half, 50) == pytest.approx(0.5)


def test_inverted_lists_are_merged_of_blocks(tmp_path: Path, monkeypatch):
    """The whole never has to be in memory; ids are the rows, once each."""
    faiss = pytest.importorskip("faiss")
    shards = write(tmp_path, vectors_of(1050))
    written: list[int] = []
    original = faiss.write_index
    monkeypatch.setattr(faiss, "write_index", lambda index, path: (written.append(index.ntotal), original(index, path)))
    monkeypatch.setattr(faiss_files, "BLOCK", 300)
    build_index(shards, "D", "ivf", queries=0)
    assert written == [0, 300, 300, 300, 150, 1050]
    rows, _ = open_index(shards, "D", "ivf")[1](vectors_of(1, seed=2), 1050)
    assert sorted(rows[0].tolist()) == list(range(1050))
    assert sorted(path.name for path in (tmp_path / "faiss-ivf-D").iterdir()) == [
        "index.json",
        "rows.faiss",
        "rows.ivfdata",
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_an_index_may_be_moved(kind, tmp_path: Path):
    pytest.importorskip("faiss")
    shards, queries = write(tmp_path / "a", vectors_of(300)), vectors_of(3, seed=1)
    build_index(shards, "D", kind, queries=0)
    expected = open_index(shards, "D", kind)[1](queries, 5)[0]
    shutil.move(tmp_path / "a", tmp_path / "b")
    assert torch.equal(open_index(open_shards(tmp_path / "b"), "D", kind)[1](queries, 5)[0], expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_index_is_named(tmp_path: Path, kind: Any):
    pytest.importorskip("faiss")
    shards = write(tmp_path, vectors_of(100))
    build_index(shards, "D", kind, queries=0)
    folder = faiss_index.index_folder(shards, kind, "D")
    rows, record = folder / "rows.faiss", folder / "index.json"
    whole, said = rows.read_bytes(), record.read_text()
    rows.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"rows\.faiss is damaged: its size differs from the record; build it again"):
        open_index(shards, "D", kind)
    rows.write_bytes(bytes(len(whole)))
    with pytest.raises(ValueError, match=r"rows\.faiss is damaged, or of another version of faiss; build it again"):
        open_index(shards, "D", kind)
    for text in ("{", "[]", said.replace('"rows"', '"lines"'), said.replace(': "D"', ": 3")):
        record.write_text(text)
        with pytest.raises(
            ValueError, match=r"index\.json is not a record of an index of this version: .*Build it again"
        ):
            open_index(shards, "D", kind)
    build_index(shards, "D", kind, queries=0)
    assert open_index(shards, "D", kind)[0].rows == 100


def test_an_index_is_built_by_one_process_at_a_time_where_there_is_room(tmp_path: Path, monkeypatch):
    pytest.importorskip("faiss")
    shards = write(tmp_path, vectors_of(100))
    build_index(shards, "D", "exact")
    with locked(tmp_path), pytest.raises(BlockingIOError, match="is in use by another run"):
        build_index(shards, "D", "exact")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=10))
    with pytest.raises(ValueError, match=r"must have room for 0\.1 MB; its disk has 0\.0 MB left"):
        build_index(shards, "D", "exact")
    assert open_index(shards, "D", "exact")[0].rows == 100  # the one before is left


def test_an_index_of_other_descriptors_is_refused(tmp_path: Path):
    pytest.importorskip("faiss")
    build_index(write(tmp_path / "a", vectors_of(100)), "D", "exact")
    other = write(tmp_path / "b", vectors_of(100), fingerprint="another")
    with pytest.raises(FileNotFoundError, match=r"has no finished index of kind exact for 'D'; build it first"):
        open_index(other, "D", "exact")
    shutil.copytree(tmp_path / "a" / "faiss-exact-D", tmp_path / "b" / "faiss-exact-D")
    with pytest.raises(ValueError, match=r"built from other descriptors .*: fingerprint model, not another; build it"):
        open_index(other, "D", "exact")


def test_what_faiss_would_lose_in_silence_is_refused(tmp_path: Path):
    pytest.importorskip("faiss")
    vectors = vectors_of(100)
    shards = write(tmp_path / "a", vectors)
    build_index(shards, "D", "exact")
    nan = torch.full((1, 16), torch.nan)
    for search in (open_index(shards, "D", "exact")[1], exact_search(shards, "D")):
        with pytest.raises(ValueError, match=r"queries must be finite; received NaN"):
            search(nan, 3)
        with pytest.raises(ValueError, match=r"queries must have the width of the index, 16; received 8"):
            search(vectors_of(1, 8), 3)
        with pytest.raises(ValueError, match=r"k must be .*received 0"):
            search(vectors[:1], 0)
    vectors[7, 2] = torch.nan
    with pytest.raises(ValueError, match=r"shard 0 of .* must hold finite descriptors; extract again"):
        build_index(write(tmp_path / "b", vectors), "D", "exact")
    with pytest.raises(ValueError, match=r"kind must be .*received 'flat'"):
        build_index(shards, "D", "flat")


def test_without_faiss_the_message_says_what_to_install(shards: Shards, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install faiss-cpu"):
        build_index(shards, "D", "exact")


@pytest.mark.slow
def test_samplers_of_pytorch_metric_learning_may_be_loaded(tmp_path: Path):
    """They take away the argument `params` of faiss' search."""
    pytest.importorskip("faiss")
    write(tmp_path, vectors_of(300))
    code = (
        "import pytorch_metric_learning.samplers, pytorch_metric_learning.utils.inference, faiss, torch\n"
        "from pathlib import Path\n"
        "from stmi_layers.training import build_index, open_index, open_shards\n"
        f"shards = open_shards(Path({str(tmp_path)!r}))\n"
        "build_index(shards, 'D', 'hnsw')\n"
        "rows, _ = open_index(shards, 'D', 'hnsw')[1](shards.vectors(0, 'D')[:2], 200)\n"
        "assert (rows >= 0).all() and rows.shape == (2, 200)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
