"""Time and memory of the kinds of search on random descriptors: `python -m examples.search.benchmark --out DIR`.

Descriptors are unit vectors around random centres, ten per centre, like images of one identity.
"""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from examples import cli
from stmi_layers.training.faiss_files import import_faiss
from stmi_layers.training.faiss_index import build_index, open_index
from stmi_layers.training.files import write_text
from stmi_layers.training.neighbours import exact_search
from stmi_layers.training.record import unlabelled
from stmi_layers.training.shards import Extraction, Shards, open_shards, shard_path, write_record, write_shard

KINDS = ("ours", "exact", "ivf", "hnsw")


@dataclass(frozen=True)
class Arguments:
    """Size of the benchmark, and kinds of search."""

    out: Path
    """Folder of the shards, the indices and benchmark.json."""
    items: int = 1_000_000
    """Number of descriptors."""
    width: int = 512
    """Width of a descriptor."""
    queries: int = 64
    """Number of timed queries, searched all at once and one by one."""
    spread: float = 0.7
    """Length of the random vector that is added to a centre of length 1."""
    threads: int = 1
    """Number of CPU threads."""
    kinds: tuple[str, ...] = KINDS
    """Kinds of search to measure; "ours" needs no faiss."""
    only: str = ""
    """Measure only this kind. The command starts itself with this option for every kind, to measure its memory."""


def write_made_up(arguments: Arguments) -> Shards:
    """Write shards of random descriptors, unless they exist."""
    size = 1 << 16
    record = Extraction("made up", {"D": arguments.width}, arguments.items, size, f"spread {arguments.spread}")
    write_record(arguments.out, record)
    for number in range(record.num_shards):
        if shard_path(arguments.out, number).exists():
            continue
        rows = min(size, arguments.items - number * size)
        names = [str(number * size + row) for row in range(rows)]
        generator = torch.Generator().manual_seed(number)
        write_shard(
            shard_path(arguments.out, number),
            {"D": draw(rows, arguments.width, arguments.spread, generator)},
            unlabelled(names, [()] * rows),
            {},
        )
    return open_shards(arguments.out)


def draw(rows: int, width: int, spread: float, generator: torch.Generator) -> torch.Tensor:
    """Draw unit vectors, ten around each random centre."""
    centres = F.normalize(torch.randn(-(-rows // 10), width, generator=generator)).repeat_interleave(10, dim=0)[:rows]
    return F.normalize(centres + spread * F.normalize(torch.randn(rows, width, generator=generator)))


def measure(arguments: Arguments, kind: str) -> dict[str, Any]:
    """Build and search in this process."""
    torch.set_num_threads(arguments.threads)
    memory = Memory()
    shards = open_shards(arguments.out)
    start, result = time.perf_counter(), dict[str, Any](kind=kind)
    if kind == "ours":
        search = exact_search(shards, "D")
    else:
        import_faiss().omp_set_num_threads(arguments.threads)
        record = build_index(shards, "D", kind, queries=0)  # pyright: ignore[reportArgumentType]
        result |= {"build s": time.perf_counter() - start, "build MB": memory.most(), "probes": record.probes}
        search = open_index(shards, "D", kind)[1]  # pyright: ignore[reportArgumentType]
    rows = torch.linspace(0, arguments.items - 1, arguments.queries).long()
    noise = torch.randn(len(rows), arguments.width, generator=torch.Generator().manual_seed(-1))
    vectors = [
        shards.vectors(int(row) // shards.record.shard_size, "D")[row % shards.record.shard_size] for row in rows
    ]
    queries = F.normalize(torch.stack(vectors) + 0.3 * F.normalize(noise))
    search(queries[:1], 10)
    start = time.perf_counter()
    found = search(queries, 10)[0]
    result["ms per query, together"] = 1000 * (time.perf_counter() - start) / len(queries)
    start, some = time.perf_counter(), queries[: 4 if kind == "ours" else len(queries)]
    for query in some:
        search(query[None], 10)
    result |= {"ms per query, alone": 1000 * (time.perf_counter() - start) / len(some), "peak MB": memory.most()}
    truth = arguments.out / "truth.json"
    if kind == "ours":
        write_text(truth, json.dumps(found.tolist()))
    if truth.exists():
        right = json.loads(truth.read_text())
        pairs = zip(right, found.tolist(), strict=True)
        result["recall at 10"] = sum(len({*one} & {*other}) / 10 for one, other in pairs) / len(right)
    # Load of the machine over 15 minutes per core, this process included.
    return result | {"load": os.getloadavg()[2] / (os.cpu_count() or 1)}


class Memory:
    """Peak of this process's own memory in MB, without mapped files, which can be dropped at any time."""

    def __init__(self) -> None:
        self._most = 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.most()
            time.sleep(0.1)

    def most(self) -> float:
        """Return the peak so far."""
        lines = Path("/proc/self/status").read_text().splitlines()
        (now,) = [int(line.split()[1]) for line in lines if line.startswith("RssAnon")]
        self._most = max(self._most, now / 1024)
        return self._most


def main(arguments: Arguments) -> list[dict[str, Any]]:
    """Measure every kind in a separate process, and print a table."""
    if arguments.only:
        result = measure(arguments, arguments.only)
        write_text(arguments.out / f"{arguments.only}.json", json.dumps(result))
        return [result]
    write_made_up(arguments)
    results = []
    for kind in arguments.kinds:
        subprocess.run([sys.executable, "-m", "examples.search.benchmark", *sys.argv[1:], "--only", kind], check=True)
        results.append(json.loads((arguments.out / f"{kind}.json").read_text()))
    write_text(arguments.out / "benchmark.json", json.dumps(results, indent=1) + "\n")
    table = as_table(results, arguments.items)
    write_text(arguments.out / "table.md", table + "\n")
    print(table)
    return results


HEADS = "items", "search", "build", "build memory", "64 queries at once, each", "one query alone", "recall at 10"


def as_table(results: Sequence[Mapping[str, Any]], items: int) -> str:
    """Format the table of the documentation, and the load of the machine.

    Examples:
        >>> told = {"kind": "ours", "peak MB": 330.0, "recall at 10": 1.0, "load": 2.04}
        >>> told |= {"ms per query, together": 44.4, "ms per query, alone": 1040.0}
        >>> print(as_table([told], 1_000_000).split("\\n")[2])
        | 1,000,000 | shards, exact (ours) | none | none, 0.3 GB to search | 44 ms | 1.0 s | 1 |
    """
    rows = [HEADS, ("---",) * len(HEADS)]
    for result in results:
        name, build = f"faiss `{result['kind']}`", ("none", f"none, {result['peak MB'] / 1024:.1f} GB to search")
        if result["kind"] == "ours":
            name = "shards, exact (ours)"
        else:
            name += f", {result['probes']} lists read" if result["probes"] else ""
            build = f"{result['build s']:.0f} s", f"{result['build MB'] / 1024:.1f} GB"
        times = (as_time(result[f"ms per query, {how}"]) for how in ("together", "alone"))
        recall = f"{result['recall at 10']:.3g}" if "recall at 10" in result else ""
        rows.append((f"{items:,}", name, *build, *times, recall))
    loads = [result["load"] for result in results if "load" in result]
    busy = f"The machine had {min(loads):.1f} to {max(loads):.1f} times as much to do as it has cores." if loads else ""
    table = "\n".join(f"| {' | '.join(row)} |".replace("|  |", "| |") for row in rows)
    return f"{table}\n\n{busy}".rstrip()


def as_time(milliseconds: float) -> str:
    """Format a time.

    Examples:
        >>> as_time(1.13), as_time(44.4), as_time(420.0), as_time(1040.0)
        ('1.1 ms', '44 ms', '0.42 s', '1.0 s')
    """
    if milliseconds >= 300:
        return f"{milliseconds / 1000:.2g} s" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"
    return f"{milliseconds:.1f} ms" if milliseconds < 10 else f"{milliseconds:.0f} ms"


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.search.benchmark")
