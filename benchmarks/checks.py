"""Cost of run-time checks in one forward call of a layer, on tensors too small to take time."""

from collections.abc import Callable, Iterator

import torch

import stmi_layers as sl
from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import _typing

DIM, LIMIT = 16, 30


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare one call of each layer of STMI, with one sample."""
    for name, call in layers(device).items():
        yield Comparison(
            name=f"`{name}`",
            contenders={"the call unchecked": Contender(unchecked(call)), "ours": Contender(call)},
            targets=(Target("µs", LIMIT),),
            threads=1,
        )


def layers(device: str) -> dict[str, Callable[[], Outputs]]:
    """Return calls of layers of width 16."""
    generator = torch.Generator().manual_seed(0)
    tokens, semantic, classes = (
        torch.randn(shape, generator=generator).to(device) for shape in ((1, 5, DIM), (1, 3, 4, DIM), (1, 3, DIM))
    )
    foreground = torch.ones(1, 5, dtype=torch.bool, device=device)
    attention = sl.SegmentationModulatedAttention(DIM, num_heads=2).eval().to(device)
    reallocation = sl.SemanticTokenReallocation(DIM, num_heads=2).eval().to(device)
    hypergraph = sl.CrossModalHypergraph(DIM, num_nodes=12).eval().to(device)
    readout = sl.GlobalCrossAttention(DIM, num_heads=2).eval().to(device)
    masks = torch.ones(1, 8, 8, device=device)
    return {
        "token_foreground": without_gradient(lambda: sl.token_foreground(masks, (2, 2))),
        "SegmentationModulatedAttention": without_gradient(lambda: attention(tokens, foreground)),
        "SemanticTokenReallocation": without_gradient(lambda: reallocation(tokens)),
        "CrossModalHypergraph": without_gradient(lambda: hypergraph(semantic)),
        "GlobalCrossAttention": without_gradient(lambda: readout(classes, semantic.flatten(1, 2))),
    }


def without_gradient(call: Callable[[], torch.Tensor]) -> Callable[[], Outputs]:
    @torch.no_grad()
    def run() -> Outputs:
        return (call(),)

    return run


def unchecked(call: Callable[[], Outputs]) -> Callable[[], Outputs]:
    """Return the same call without checks, as inside a checked layer."""

    def run() -> Outputs:
        _typing._thread.inside = True
        try:
            return call()
        finally:
            _typing._thread.inside = False

    return run
