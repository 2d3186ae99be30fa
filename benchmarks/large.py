"""Exact search and re-ranking at full size: CPU seconds and peak memory, every call in a separate process.

    git worktree add build/earlier 38c4d77
    python -m benchmarks.large --earlier build/earlier --docs

One thread, Linux. The processes run one after the other, in turns; without `--earlier` only this build is measured.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.machine import describe
from benchmarks.report import DOCS, origin

ROOT = DOCS.parent
DIM, NEAREST = 256, 10
QUERIES, GALLERY = 128, 1_000_000
RERANKED = 3000, 32_000, 2200  # queries, gallery entries, identities
SEARCH, RERANKING = (
    f"exact search, {QUERIES} x {GALLERY} x {DIM}, k = {NEAREST}",
    f"reranked_metrics, {RERANKED[0]} + {RERANKED[1]} x {DIM}",
)
# Tensors from 1 MiB on are returned to the system when they are freed, so that the peak is the memory held at one time.
SETTINGS = {"OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": str(2**20)}
HEAD = ("what", "ours", "target", "spread", "CPU seconds", "MiB", "memory", "same result", "against")

Call = Callable[[], Tensor]


class Found(NamedTuple):
    """Result of one call: CPU seconds, peak memory beyond that of the inputs, and a digest of the result."""

    seconds: float
    mebibytes: float
    digest: str


class Row(NamedTuple):
    """Two tasks to compare, and the limit of our time as a ratio."""

    name: str
    ours: str
    against: str
    title: str
    limit: float | None


def search_inputs() -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(count, DIM, generator=generator) for count in (QUERIES, GALLERY))


def reranking_inputs() -> tuple[Tensor, ...]:
    """Return query, gallery and their identities; features lie around one centre per identity."""
    generator = torch.Generator().manual_seed(0)
    queries, entries, identities = RERANKED
    centre = F.normalize(torch.randn(identities, DIM, generator=generator))
    ids = torch.randint(identities, (queries + entries,), generator=generator)
    features = centre[ids] + 0.06 * torch.randn(len(ids), DIM, generator=generator)
    return features[:queries], features[queries:], ids[:queries], ids[queries:]


def flat(query: Tensor, gallery: Tensor) -> Call:
    """Search with faiss; building the index counts as memory, but not as time."""
    import faiss

    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatL2(DIM)
    index.add(gallery.numpy())  # pyright: ignore[reportCallIssue]
    return lambda: torch.from_numpy(index.search(query.numpy(), NEAREST)[1])  # pyright: ignore[reportCallIssue]


def exact(query: Tensor, gallery: Tensor) -> Call:
    from stmi_layers import nearest

    return lambda: nearest(query, gallery, NEAREST)[0]


def rerank(query: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor) -> Call:
    from stmi_layers import reranked_metrics  # of this tree, or of the earlier one

    return lambda: reranked_metrics(query, gallery, query_ids, gallery_ids).average_precision


def product(query: Tensor, gallery: Tensor, *_: Tensor) -> Call:
    """Multiply all entries with all, which any search for neighbours needs."""
    features = torch.cat((query, gallery))
    return lambda: torch.stack([(rows @ features.T).sum() for rows in features.split(64)])


TASKS: dict[str, tuple[Callable[[], tuple[Tensor, ...]], Callable[..., Call]]] = {
    "flat": (search_inputs, flat),
    "exact": (search_inputs, exact),
    "rerank": (reranking_inputs, rerank),
    "product": (reranking_inputs, product),
}


def main() -> None:
    options = parse()
    if options.task:
        print(json.dumps(measure(options.task)))
        return
    rows = [Row(SEARCH, "exact", "flat", "faiss IndexFlatL2", 0.5)]
    if options.earlier:
        rows.append(Row(RERANKING, "rerank", "earlier", f"the build of commit {commit(options.earlier)}", 0.5))
    rows.append(Row(RERANKING, "rerank", "product", "product of all pairs", None))
    found: dict[str, list[Found]] = {}
    for turn in range(options.turns):
        for task in dict.fromkeys(task for row in rows for task in (row.against, row.ours)):
            one = start("rerank", options.earlier) if task == "earlier" else start(task, ROOT)
            found.setdefault(task, []).append(one)
            print(f"turn {turn + 1}, {task}: {one.seconds:.1f} s, {one.mebibytes:.0f} MiB", flush=True)
    text = table(rows, found)
    print(f"\n{text}")
    if options.docs:
        (DOCS / "tables" / "benchmarks-cpu-large.md").write_text(text)


def table(rows: list[Row], found: dict[str, list[Found]]) -> str:
    """Return the table, below the command and the machine."""
    command = " ".join(["python -m benchmarks.large", *sys.argv[1:]])
    lines = [HEAD, ["---"] * len(HEAD), *(cells_of(row, found) for row in rows)]
    first = origin({"command": command, "machine": describe("cpu") | {"threads": 1}})
    return "\n".join([first, "", *(f"| {' | '.join(cells)} |" for cells in lines)]) + "\n"


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.large", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--earlier", type=Path, help="checkout of an earlier commit, to compare its re-ranking")
    parser.add_argument("--turns", type=int, default=3, help="number of calls of each task; 3 by default")
    parser.add_argument("--docs", action="store_true", help="write the table of docs/benchmarks.md")
    parser.add_argument("--task", choices=TASKS, help="run only this task, in this process, and print its measurements")
    return parser.parse_args()


def start(task: str, tree: Path) -> Found:
    """Run a task in a separate process, with the package of the checkout `tree`."""
    environment = os.environ | SETTINGS | {"PYTHONPATH": str(tree.resolve() / "src")}
    line = [sys.executable, "-m", "benchmarks.large", "--task", task]
    done = subprocess.run(line, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return Found(*json.loads(done.stdout))


def measure(task: str) -> Found:
    """Make the inputs, then run the task."""
    import resource  # not on Windows

    torch.set_num_threads(1)
    make, prepare = TASKS[task]
    inputs = make()
    before = resident()
    call = prepare(*inputs)
    began = time.process_time()
    result = call()
    seconds = time.process_time() - began
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Found(seconds, most - before, hashlib.sha256(result.contiguous().numpy().tobytes()).hexdigest())


def resident() -> float:
    """Return the present memory of this process, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def commit(tree: Path) -> str:
    line = ["git", "-C", str(tree), "rev-parse", "--short", "HEAD"]
    return subprocess.run(line, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def cells_of(row: Row, found: dict[str, list[Found]]) -> list[str]:
    """Return the cells of one row: ratios of CPU time and of memory, and whether all calls gave the same bits."""
    ours, against = found[row.ours], found[row.against]
    ratios = sorted(one.seconds / other.seconds for one, other in zip(ours, against, strict=True))
    ratio = statistics.median(ratios)
    seconds, mebibytes = (statistics.median(getattr(one, name) for one in ours) for name in ("seconds", "mebibytes"))
    memory = mebibytes / statistics.median(one.mebibytes for one in against)
    missed = row.limit is not None and ratio > row.limit
    same = len({one.digest for one in (*ours, *against)}) == 1
    return [
        row.name,
        f"**{ratio:.2f}**" if missed else f"{ratio:.2f}",
        "" if row.limit is None else f"≤ {row.limit:g}",
        f"{ratios[0]:.2f} to {ratios[-1]:.2f}",
        f"{seconds:.1f}",
        f"{mebibytes:.0f}",
        f"{memory:.2f}",
        "" if row.limit is None else "yes" if same else "no",
        row.title,
    ]


if __name__ == "__main__":
    main()
