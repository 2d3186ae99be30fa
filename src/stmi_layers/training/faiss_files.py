"""Index files of faiss, written from shards that are read one at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from stmi_layers.training.messages import printable
from stmi_layers.training.shards import Shards

BLOCK = 1 << 18  # rows of an inverted file held in memory at once
TRAINED_ON = 1 << 17  # largest number of rows that centres are learned from
NEIGHBOURS, WIDTH_BUILT, WIDTH_SEARCHED = 32, 80, 128  # HNSW: links per row, efConstruction, efSearch


def write_index(shards: Shards, name: str, folder: Path, kind: str, *, lists: int, probes: int) -> None:
    """Write the files of an index.

    Args:
        shards: a finished extraction.
        name: name of the descriptor.
        folder: output folder.
        kind: "exact", "ivf" (inverted lists) or "hnsw" (a graph).
        lists: number of inverted lists.
        probes: number of inverted lists that a query reads.

    Raises:
        ValueError: when faiss cannot write the files; the message names the folder and the reason.
    """
    faiss, width = import_faiss(), shards.record.widths[name]
    try:
        if kind == "ivf":
            _build_lists(faiss, shards, name, folder, lists, probes)
            return
        index = faiss.IndexFlatL2(width) if kind == "exact" else faiss.IndexHNSWFlat(width, NEIGHBOURS)
        if kind == "hnsw":
            index.hnsw.efConstruction, index.hnsw.efSearch = WIDTH_BUILT, WIDTH_SEARCHED
        for block in _blocks(shards, name):
            index.add(block)
        faiss.write_index(index, str(folder / "rows.faiss"))
    except RuntimeError as error:  # of faiss, from several lines of its sources
        raise ValueError(f"{folder} cannot be written: {printable(error).rpartition(': ')[2]}") from error


def _blocks(shards: Shards, name: str) -> Iterator[np.ndarray]:
    """Yield the rows of one shard after the other, and refuse NaN and infinity, which faiss would silently lose."""
    for number in range(len(shards)):
        block = np.ascontiguousarray(shards.vectors(number, name).numpy())
        if not np.isfinite(block).all():
            raise ValueError(f"shard {number} of {shards.folder} must hold finite descriptors; extract again")
        if len(block):
            yield block


def _build_lists(faiss: Any, shards: Shards, name: str, folder: Path, lists: int, probes: int) -> None:
    """Build an inverted file on disk, merged from blocks that fit into memory."""
    from faiss.contrib.ondisk import merge_ondisk  # pyright: ignore[reportMissingImports]

    width = shards.record.widths[name]
    quantizer = faiss.IndexFlatL2(width)
    index = faiss.IndexIVFFlat(quantizer, width, lists)
    index.cp.seed = 0
    index.cp.min_points_per_centroid = 1  # prevents a warning about few rows
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
    with quiet():
        merge_ondisk(merged, parts, str(folder / "rows.ivfdata"))
    faiss.write_index(merged, str(folder / "rows.faiss"))
    for file in (str(empty), *parts):
        Path(file).unlink()


def _sample(shards: Shards, name: str, count: int) -> np.ndarray:
    """Take rows spread evenly over all shards."""
    step = max(1, shards.starts[-1] // count)
    return np.concatenate([block[::step] for block in _blocks(shards, name)])


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress what faiss prints from C; errors of faiss still arrive as exceptions."""
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
        raise ImportError("faiss cannot be imported; install it with: pip install faiss-cpu") from error
    return faiss
