"""Indices of faiss over shards: exact, inverted lists, or a graph.

An index lies beside the shards, in `faiss-<kind>-<descriptor>/`. It knows the model whose descriptors it holds, and is
memory-mapped when it is searched. Needs the extra `search`.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from stmi_layers._checks import check_choice, check_positive
from stmi_layers.training.files import write_text
from stmi_layers.training.neighbours import Found, Search, measure_recall, refuse_queries
from stmi_layers.training.shards import Shards

Kind = Literal["exact", "ivf", "hnsw"]
RECORD = "index.json"
BLOCK = 1 << 18  # rows of an inverted file that are in memory at once
TRAINED_ON = 1 << 17  # most rows that centres are learned from
NEIGHBOURS, WIDTH_BUILT, WIDTH_SEARCHED = 32, 80, 128  # of HNSW: links, efConstruction, efSearch


@dataclass(frozen=True)
class Index:
    """Record of an index.

    Attributes:
        kind: exact; "ivf", inverted lists, of which some are read; or "hnsw", a graph.
        descriptor: name of what it holds.
        fingerprint: digest of the model.
        listing: digest of the items.
        rows: number of rows.
        lists: number of inverted lists, 0 for other kinds.
        probes: inverted lists that are read per query.
        recall: share of the 10 nearest rows that were found, the mean over `queries` rows of the index; 1 when exact.
        queries: number of rows that were looked up to measure it.
    """

    kind: str
    descriptor: str
    fingerprint: str
    listing: str
    rows: int
    lists: int = 0
    probes: int = 0
    recall: float = 1.0
    queries: int = 0


def index_folder(shards: Shards, kind: str, name: str) -> Path:
    """Return the folder of an index."""
    return shards.folder / f"faiss-{kind}-{name}"


def build_index(shards: Shards, name: str, kind: Kind, *, queries: int = 200) -> Index:
    """Build an index of faiss from shards, which are read one at a time, save it, and measure its recall.

    An inverted file never holds more than 262144 rows in memory. The other kinds hold all rows while they are built.

    Args:
        shards: a finished extraction.
        name: the descriptor.
        kind: exact; "ivf", inverted lists; "hnsw", a graph.
        queries: rows that are looked up to measure the recall.

    Raises:
        ImportError: when faiss is not installed.
        ValueError: when descriptors are not finite, or there are none.
    """
    check_choice("kind", kind, get_args(Kind))
    shards.refuse_unknown(name)
    faiss, folder = import_faiss(), index_folder(shards, kind, name)
    rows, width = shards.starts[-1], shards.record.widths[name]
    if not rows:
        raise ValueError(f"{shards.folder} must hold a descriptor to be searched; it holds none")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lists = probes = 0
    if kind == "ivf":
        lists = max(1, min(round(4 * rows**0.5), rows // 39))
        probes = max(1, lists // 32)
        _build_lists(faiss, shards, name, folder, lists, probes)
    else:
        index = faiss.IndexFlatL2(width) if kind == "exact" else faiss.IndexHNSWFlat(width, NEIGHBOURS)
        if kind == "hnsw":
            index.hnsw.efConstruction, index.hnsw.efSearch = WIDTH_BUILT, WIDTH_SEARCHED
        for block in _blocks(shards, name):
            index.add(block)
        faiss.write_index(index, str(folder / "rows.faiss"))
        del index
    record = Index(kind, name, shards.record.fingerprint, shards.record.listing, rows, lists, probes)
    write_text(folder / RECORD, json.dumps(asdict(record), indent=1) + "\n")
    if kind != "exact" and queries:
        number = min(queries, rows)
        recall = measure_recall(shards, name, open_index(shards, name, kind)[1], number)
        record = Index(**(asdict(record) | {"recall": recall, "queries": number}))
        write_text(folder / RECORD, json.dumps(asdict(record), indent=1) + "\n")
    return record


def _blocks(shards: Shards, name: str) -> Iterator[np.ndarray]:
    """Rows of one shard after the other; faiss would lose rows that are not finite, in silence."""
    for number in range(len(shards)):
        block = np.ascontiguousarray(shards.vectors(number, name).numpy())
        if not np.isfinite(block).all():
            raise ValueError(f"shard {number} of {shards.folder} must hold finite descriptors; extract again")
        if len(block):
            yield block


def _build_lists(faiss: Any, shards: Shards, name: str, folder: Path, lists: int, probes: int) -> None:
    """An inverted file on disk, merged of blocks that fit into memory."""
    from faiss.contrib.ondisk import merge_ondisk  # pyright: ignore[reportMissingImports]

    width = shards.record.widths[name]
    quantizer = faiss.IndexFlatL2(width)
    index = faiss.IndexIVFFlat(quantizer, width, lists)
    index.cp.seed = 0
    index.cp.min_points_per_centroid = 1  # it would only warn
    index.train(_sample(shards, name, min(TRAINED_ON, 64 * lists)))
    index.nprobe = probes
    empty = folder / "empty.faiss"
    faiss.write_index(index, str(empty))
    parts: list[str] = []
    start = 0

    def finish() -> None:
        parts.append(str(folder / f"part-{len(parts)}.faiss"))
        faiss.write_index(index, parts[-1])

    for block in _blocks(shards, name):
        index.add_with_ids(block, np.arange(start, start + len(block)))
        start += len(block)
        if index.ntotal >= BLOCK:
            finish()
            index = faiss.read_index(str(empty))
    if index.ntotal:
        finish()
    merged = faiss.read_index(str(empty))
    with _quiet():
        merge_ondisk(merged, parts, str(folder / "rows.ivfdata"))
    faiss.write_index(merged, str(folder / "rows.faiss"))
    for file in (str(empty), *parts):
        Path(file).unlink()


def _sample(shards: Shards, name: str, count: int) -> np.ndarray:
    """Rows spread over all shards, evenly."""
    step = max(1, shards.starts[-1] // count)
    return np.concatenate([block[::step] for block in _blocks(shards, name)])


def open_index(shards: Shards, name: str, kind: Kind) -> tuple[Index, Search]:
    """Return the record of an index, and a search of it, memory-mapped.

    Every query gets `k` rows; where an index has fewer, -1 at distance infinity.

    Raises:
        FileNotFoundError: when there is no such index.
        ImportError: when faiss is not installed.
        ValueError: when the index was built from other descriptors.
    """
    check_choice("kind", kind, get_args(Kind))
    faiss, folder = import_faiss(), index_folder(shards, kind, name)
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{shards.folder} has no finished index of kind {kind} for {name!r}; build it first")
    record = Index(**json.loads((folder / RECORD).read_text(encoding="utf-8")))
    for what, own in (("fingerprint", shards.record.fingerprint), ("listing", shards.record.listing)):
        if getattr(record, what) != own:
            raise ValueError(
                f"{folder} was built from other descriptors than those in {shards.folder}: {what} "
                f"{getattr(record, what)}, not {own}; build it again"
            )
    path = str(folder / "rows.faiss")
    # Inverted lists lie in a file of their own, which is always mapped; its path is that of the index, wherever it is.
    with _quiet():
        index = faiss.read_index(path, faiss.IO_FLAG_ONDISK_SAME_DIR if kind == "ivf" else faiss.IO_FLAG_MMAP_IFC)

    def search(queries: Tensor, k: int) -> Found:
        check_positive(k=k)
        refuse_queries(queries, index.d)
        return _search(index, record, np.ascontiguousarray(queries.float().numpy()), min(k, record.rows))

    return record, search


def _search(index: Any, record: Index, queries: np.ndarray, k: int) -> Found:
    """Search with settings that give k rows: a graph is searched at least k wide, and more lists are read."""
    if record.kind == "hnsw":
        index.hnsw.efSearch = max(WIDTH_SEARCHED, k)
    probes = record.probes
    while True:
        if record.kind == "ivf":
            index.nprobe = probes
        distances, rows = index.search(queries, k)
        if (rows >= 0).all() or record.kind != "ivf" or probes >= record.lists:
            break
        probes = min(2 * probes, record.lists)
    found = torch.from_numpy(rows)
    return found, torch.from_numpy(distances).clamp(min=0).masked_fill(found < 0, torch.inf)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what faiss prints about files by C functions of its own; its errors are exceptions."""
    kept, nowhere = [os.dup(stream) for stream in (1, 2)], os.open(os.devnull, os.O_WRONLY)
    try:
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        yield
    finally:
        for stream, copy in zip((1, 2), kept, strict=True):
            os.dup2(copy, stream)
            os.close(copy)
        os.close(nowhere)


def import_faiss() -> Any:
    """Import faiss, or say what to install."""
    try:
        import faiss  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError("faiss cannot be imported; install it by: pip install faiss-cpu") from error
    return faiss
