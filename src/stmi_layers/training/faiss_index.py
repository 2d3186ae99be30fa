"""Indices of faiss over shards: exact, inverted lists, or a graph.

An index lies beside the shards, in `faiss-<kind>-<descriptor>/`. It records the model whose descriptors it holds, and
is memory-mapped for searching. Needs the extra `search`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from stmi_layers._checks import check_choice, check_positive
from stmi_layers.training.faiss_files import NEIGHBOURS, WIDTH_SEARCHED, import_faiss, quiet, write_index
from stmi_layers.training.files import locked, refuse_full, write_folder, write_text
from stmi_layers.training.messages import printable
from stmi_layers.training.neighbours import Found, Search, measure_recall, refuse_queries
from stmi_layers.training.settings import from_dict
from stmi_layers.training.shards import Shards

Kind = Literal["exact", "ivf", "hnsw"]
RECORD = "index.json"


@dataclass(frozen=True)
class Index:
    """Record of an index.

    Attributes:
        kind: "exact", "ivf" (inverted lists, of which a query reads some) or "hnsw" (a graph).
        descriptor: name of the descriptor.
        fingerprint: digest of the model.
        listing: digest of the items.
        rows: number of rows.
        lists: number of inverted lists, 0 for other kinds.
        probes: number of inverted lists that a query reads.
        recall: share of the 10 nearest rows that are found, as a mean over `queries` rows of the index; 1 when exact.
        queries: number of rows looked up to measure the recall.
        sizes: size in bytes of each file of the index, to detect truncated files.
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
    sizes: Mapping[str, int] = field(default_factory=dict)


def index_folder(shards: Shards, kind: str, name: str) -> Path:
    """Return the folder of an index."""
    return shards.folder / f"faiss-{kind}-{name}"


def build_index(shards: Shards, name: str, kind: Kind, *, queries: int = 200) -> Index:
    """Build an index of faiss from shards, which are read one at a time, save it, and measure its recall.

    An inverted file never holds more than 262144 rows in memory. The other kinds hold all rows while they are built.

    Args:
        shards: a finished extraction.
        name: name of the descriptor.
        kind: "exact", "ivf" (inverted lists) or "hnsw" (a graph).
        queries: number of rows looked up to measure the recall.

    Raises:
        BlockingIOError: when another process extracts into the folder of the shards, or builds an index there.
        ImportError: when faiss is not installed.
        ValueError: when descriptors are not finite, or there are none; when the disk is full or read-only.
    """
    check_choice("kind", kind, get_args(Kind))
    shards.refuse_unknown(name)
    import_faiss()
    folder = index_folder(shards, kind, name)
    rows, width = shards.starts[-1], shards.record.widths[name]
    if not rows:
        raise ValueError(f"{shards.folder} must hold a descriptor to be searched; it holds none")
    lists = max(1, min(round(4 * rows**0.5), rows // 39)) if kind == "ivf" else 0
    probes = max(1, lists // 32) if kind == "ivf" else 0
    record = Index(kind, name, shards.record.fingerprint, shards.record.listing, rows, lists, probes)
    with locked(shards.folder):
        # Lists are merged into a memory-mapped file; there a full disk would end the process by a signal.
        refuse_full(shards.folder, rows * (4 * width + 16 * NEIGHBOURS) * (2 if kind == "ivf" else 1))
        with write_folder(folder, replace=True) as unfinished:
            write_index(shards, name, unfinished, kind, lists=lists, probes=probes)
            sizes = {file.name: file.stat().st_size for file in unfinished.iterdir()}
            record = replace(record, sizes=sizes)
            write_text(unfinished / RECORD, json.dumps(asdict(record), indent=1) + "\n")
        if kind != "exact" and queries:
            number = min(queries, rows)
            recall = measure_recall(shards, name, open_index(shards, name, kind)[1], number)
            record = replace(record, recall=recall, queries=number)
            write_text(folder / RECORD, json.dumps(asdict(record), indent=1) + "\n")
    return record


def open_index(shards: Shards, name: str, kind: Kind) -> tuple[Index, Search]:
    """Return the record of an index, and a search of the memory-mapped index.

    A query gets `k` rows, or all rows of a smaller index; -1 at distance infinity where the search finds fewer.

    Raises:
        FileNotFoundError: when there is no such index.
        ImportError: when faiss is not installed.
        ValueError: when the index is damaged, or was built from other descriptors.
    """
    check_choice("kind", kind, get_args(Kind))
    faiss, folder = import_faiss(), index_folder(shards, kind, name)
    if not (folder / RECORD).is_file():
        raise FileNotFoundError(f"{shards.folder} has no finished index of kind {kind} for {name!r}; build it first")
    record = _read_record(folder)
    for what, own in (("fingerprint", shards.record.fingerprint), ("listing", shards.record.listing)):
        if getattr(record, what) != own:
            raise ValueError(
                f"{folder} was built from other descriptors than those in {shards.folder}: {what} "
                f"{getattr(record, what)}, not {own}; build it again"
            )
    path = str(folder / "rows.faiss")
    # Inverted lists lie in a second file, which faiss always maps; the flag makes faiss look for it beside the index.
    try:
        with quiet():
            index = faiss.read_index(path, faiss.IO_FLAG_ONDISK_SAME_DIR if kind == "ivf" else faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise ValueError(f"{path} is damaged, or of another version of faiss; build it again") from error
    if (index.d, index.ntotal) != (shards.record.widths[name], record.rows):
        raise ValueError(
            f"{path} must hold {record.rows} rows; it has {index.ntotal} of width {index.d}; build it again"
        )

    def search(queries: Tensor, k: int) -> Found:
        check_positive(k=k)
        refuse_queries(queries, index.d)
        return _search(index, record, np.ascontiguousarray(queries.float().numpy()), min(k, record.rows))

    return record, search


def _read_record(folder: Path) -> Index:
    """Read the record of an index, and compare the sizes of its files with the recorded sizes."""
    path = folder / RECORD
    try:
        record = from_dict(Index, json.loads(path.read_text(encoding="utf-8")))
        found = {name: (folder / name).stat().st_size for name in ("rows.faiss", *record.sizes)}
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a record of an index of this version: {printable(error)}. Build it again"
        ) from error
    if wrong := [name for name, size in found.items() if record.sizes.get(name) != size]:
        raise ValueError(f"{folder / wrong[0]} is damaged: its size differs from the record; build it again")
    return record


def _search(index: Any, record: Index, queries: np.ndarray, k: int) -> Found:
    """Search for k rows: a graph is searched at least k wide, and inverted lists are added until k rows are found."""
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
