"""Attention in bfloat16 on a processor without instructions for its products.

A processor that has them does without when `ENVIRONMENT` is set before torch is imported: MKL and oneDNN then multiply
as on an AVX512 processor of before. `python -m benchmarks` measures this topic in a process of its own with these
variables. Torch itself still sees the instructions, so "ours" is told that there are none.
"""

from collections.abc import Iterator
from unittest import mock

import torch
from torch import Tensor

from benchmarks.attention import SIZES, Problem
from benchmarks.runner import Comparison, Target

ENVIRONMENT = {"MKL_ENABLE_INSTRUCTIONS": "AVX512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare forward passes; there is nothing to compare on a GPU."""
    for tokens, batch in SIZES.items() if device == "cpu" else ():
        for threads in (None, 1):
            problem = _Older(device, tokens, batch, torch.bfloat16, backward=False, share=1 / 3)
            plain = torch.nn.functional.scaled_dot_product_attention
            yield Comparison(
                name=f"attention, N = {tokens}, forward, bfloat16 without its instructions"
                + (f", {threads} thread" if threads else ""),
                contenders={
                    "scaled_dot_product_attention": problem.contender(plain, exact=problem.plain),
                    "ours": problem.contender(problem.ours, exact=problem.written),
                },
                targets=(Target("time", 1.0), Target("error", 1.5), Target("memory", 1.5)),
                threads=threads,
            )


class _Older(Problem):
    def ours(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        with mock.patch("stmi_layers.kernels.merged._multiplies_bfloat16", return_value=False):
            return super().ours(query, key, value)
