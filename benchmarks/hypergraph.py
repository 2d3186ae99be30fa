"""Hypergraph aggregation without the linear map, against torch_geometric on one block-diagonal hypergraph."""

import importlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import hypergraph_conv

BATCH, DIM = 64, 768


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare 15 nodes (three modalities with five semantic tokens each), and 27 nodes."""
    for nodes, targets in ((15, (Target("time", 0.05),)), (27, ())):
        problem = Problem(device, nodes)
        yield Comparison(
            name=f"hypergraph aggregation, n = {nodes}, B = {BATCH}, forward and backward",
            contenders={
                "torch_geometric": Contender(problem.contender(problem.library), problem.exact),
                "ours": Contender(problem.contender(problem.ours), problem.exact),
                "as written": Contender(problem.contender(problem.written), problem.exact),
                "one matrix product": Contender(problem.contender(problem.floor)),
            },
            targets=targets,
        )


class Problem:
    """Nodes and a hypergraph in which every node is in about a third of the hyperedges."""

    def __init__(self, device: str, nodes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        shape = (BATCH, nodes, DIM)
        self.nodes, self.upstream = (torch.randn(shape, generator=generator).to(device) for _ in range(2))
        self.incidence = torch.rand(BATCH, nodes, nodes, generator=generator) < 1 / 3
        self.incidence = (self.incidence | torch.eye(nodes, dtype=torch.bool)).to(device)
        self.operator = torch.rand(BATCH, nodes, nodes, generator=generator).to(device)
        library = importlib.import_module("torch_geometric.nn").HypergraphConv(DIM, DIM, bias=False)
        library.lin = nn.Identity()
        self.convolve = library.to(device)

    def contender(self, convolve: Callable[[Tensor], Tensor]) -> Callable[[], Outputs]:
        return lambda: self._run(convolve, self.nodes, self.upstream)

    def exact(self) -> Outputs:
        return self._run(self.written, self.nodes.double(), self.upstream.double())

    @staticmethod
    def _run(convolve: Callable[[Tensor], Tensor], nodes: Tensor, upstream: Tensor) -> Outputs:
        nodes = nodes.detach().requires_grad_()
        result = convolve(nodes)
        return result.detach(), *torch.autograd.grad(result, nodes, upstream)

    def ours(self, nodes: Tensor) -> Tensor:
        return hypergraph_conv(nodes, self.incidence)

    def written(self, nodes: Tensor) -> Tensor:
        """Average nodes into hyperedges, and hyperedges into nodes (eq. 15)."""
        incidence = self.incidence.to(nodes.dtype)
        edges = incidence.transpose(1, 2) @ nodes / incidence.sum(dim=1)[:, :, None]
        return incidence @ edges / incidence.sum(dim=2)[:, :, None]

    def library(self, nodes: Tensor) -> Tensor:
        """Aggregate all samples as one hypergraph; its index is built every time, because the incidence changes."""
        batch, count, dim = nodes.shape
        sample, node, edge = self.incidence.nonzero(as_tuple=True)
        index = torch.stack([sample * count + node, sample * count + edge])
        return self.convolve(nodes.reshape(-1, dim), index, num_edges=batch * count).reshape(nodes.shape)

    def floor(self, nodes: Tensor) -> Tensor:
        return self.operator @ nodes
