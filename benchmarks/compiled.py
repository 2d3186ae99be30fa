"""The smaller vision transformer compiled by inductor, with SFM against without SFM; two threads.

Inductor needs a C++ compiler.
"""

from collections.abc import Iterator

from benchmarks.backbones import Pair
from benchmarks.runner import Comparison

LIMITS = {1: 1.04, 8: 1.02}


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare forward passes."""
    for batch, limit in LIMITS.items():
        pair = Pair("vit_small_patch16_224", device, compiled=True)
        yield pair.comparison(f"compiled, forward, batch {batch}", batch, Pair.forward, limit, threads=2)
