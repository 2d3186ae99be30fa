#!/usr/bin/env bash
# Package: dhg 0.9.7, torch_geometric 2.8.1 (with torch 2.13.0)
# Guess: two hyperedges with the same nodes count twice in a hypergraph convolution.
# Seen: dhg merges them when the hypergraph is made, with the mean of their weights; torch_geometric counts each. Where
#   every node makes a hyperedge of its neighbours, as in clusters, a message has another value in either library.
# For us: hypergraph_conv counts each hyperedge, as its formula does; compare with torch_geometric, not with dhg.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet torch==2.13.0 torch_geometric==2.8.1 dhg==0.9.7 numpy==2.4.6
cd "$folder"
venv/bin/python -W ignore - <<'END'
import torch
from dhg import Hypergraph
from torch_geometric.nn import HypergraphConv

nodes = torch.tensor([[1.0], [2.0], [4.0], [8.0]])
twice, once = [[0, 1], [0, 1], [1, 2, 3]], [[0, 1], [1, 2, 3]]
conv = HypergraphConv(1, 1, bias=False)
torch.nn.init.ones_(conv.lin.weight)


def geometric(edges: list[list[int]]) -> torch.Tensor:
    pairs = [(node, number) for number, edge in enumerate(edges) for node in edge]
    return conv(nodes, torch.tensor(pairs).T).detach().flatten()


def dhg(edges: list[list[int]]) -> torch.Tensor:
    return Hypergraph(4, edges).v2v(nodes).flatten()


for name, library in (("dhg", dhg), ("torch_geometric", geometric)):
    print(name, "twice", library(twice).tolist(), "once", library(once).tolist())
print("hyperedges that dhg keeps of three:", Hypergraph(4, twice).num_e)
assert Hypergraph(4, twice).num_e == 2
assert torch.equal(dhg(twice), dhg(once))
assert torch.allclose(geometric(once), dhg(once), atol=1e-4)
assert not torch.allclose(geometric(twice), geometric(once), atol=1e-2)
END
