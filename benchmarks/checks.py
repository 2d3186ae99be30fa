"""Time that the checks at run time add to one call of a layer, forward, on tiny tensors.

python -m benchmarks.checks           # print the table
python -m benchmarks.checks --docs    # and write docs/tables/benchmarks-cpu-checks.md
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

import stmi_layers as sl
from benchmarks.machine import describe
from stmi_layers import _typing

TABLE = Path(__file__).parents[1] / "docs" / "tables" / "benchmarks-cpu-checks.md"
ROUNDS, CALLS, DIM = 200, 20, 16
COMMAND = "python -m benchmarks.checks --docs"


def layers() -> dict[str, Callable[[], object]]:
    """One call of each layer, with one sample of width 16, so that the arithmetic takes next to no time."""
    tokens, foreground = torch.randn(1, 5, DIM), torch.ones(1, 5, dtype=torch.bool)
    semantic, class_tokens = torch.randn(1, 3, 4, DIM), torch.randn(1, 3, DIM)
    attention = sl.SegmentationModulatedAttention(DIM, num_heads=2).eval()
    reallocation = sl.SemanticTokenReallocation(DIM, num_heads=2).eval()
    hypergraph = sl.CrossModalHypergraph(DIM, num_nodes=12).eval()
    readout = sl.GlobalCrossAttention(DIM, num_heads=2).eval()
    masks = torch.ones(1, 8, 8)
    return {
        "`token_foreground`": lambda: sl.token_foreground(masks, (2, 2)),
        "`SegmentationModulatedAttention`": lambda: attention(tokens, foreground),
        "`SemanticTokenReallocation`": lambda: reallocation(tokens),
        "`CrossModalHypergraph`": lambda: hypergraph(semantic),
        "`GlobalCrossAttention`": lambda: readout(class_tokens, semantic.flatten(1, 2)),
    }


@contextmanager
def unchecked() -> Iterator[None]:
    """Switch the checks off, as inside a checked layer."""
    _typing._thread.inside = True
    try:
        yield
    finally:
        _typing._thread.inside = False


def microseconds(call: Callable[[], object]) -> float:
    """CPU time of this thread for one call."""
    begin = time.thread_time_ns()
    for _ in range(CALLS):
        call()
    return (time.thread_time_ns() - begin) / CALLS / 1000


def measure(call: Callable[[], object]) -> tuple[float, float]:
    """With and without checks, in turn: the least of the rounds, which other work on the machine disturbs least."""
    call()
    checked, plain = [], []
    for _ in range(ROUNDS):
        checked.append(microseconds(call))
        with unchecked():
            plain.append(microseconds(call))
    return min(checked), min(plain)


def table() -> str:
    rows = ["| layer | with checks | without | the checks |", "| --- | --- | --- | --- |"]
    for name, call in layers().items():
        checked, plain = measure(call)
        rows.append(f"| {name} | {checked:.0f} µs | {plain:.0f} µs | {checked - plain:.0f} µs |")
    return "\n".join(rows)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("--docs", action="store_true", help=f"write the table to {TABLE}")
    options = parser.parse_args()
    torch.set_num_threads(1)
    machine = "; ".join(f"{name} {value}" for name, value in describe("cpu").items())
    text = f"`{COMMAND}`, {machine}.\n\n{table()}\n"
    print(text)
    if options.docs:
        TABLE.write_text(text)


if __name__ == "__main__":
    main()
