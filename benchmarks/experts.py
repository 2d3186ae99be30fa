"""Readouts with a few learned queries and small experts (DeMo, NEXT), against their formulas as written."""

from collections.abc import Callable, Iterator
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers import ExpertReadout, GatedExperts, GlobalPatchReduction, SubsetReadout

BATCH, MODALITIES, PATCHES, DIM, HEADS, EXPERTS = 8, 3, 128, 512, 8, 4
SUBSETS = [chosen for size in range(1, MODALITIES + 1) for chosen in combinations(range(MODALITIES), size)]


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare the readout of all subsets, DeMo's whole head, its experts, and the readout of four experts."""
    problems: dict[str, tuple[Problem, float]] = {
        "subset readout": (Problem(device, Readout(), WrittenReadout), 0.12),
        "DeMo: reduction, subset readout, gated experts": (Problem(device, Demo(), WrittenDemo), 0.15),
        "gated experts, 4 heads x 7 features": (Problem(device, Experts(), WrittenExperts), 1.0),
        "expert readout, 4 experts": (Problem(device, Aggregation(), WrittenAggregation), 0.2),
    }
    for name, (problem, limit) in problems.items():
        yield Comparison(
            name=f"{name}, B = {BATCH}, N = {PATCHES}, forward and backward",
            contenders={
                "as written": Contender(problem.written, problem.exact),
                "ours": Contender(problem.ours, problem.exact),
            },
            targets=(Target("time", limit), Target("memory", 1.0), Target("error", 2.0)),
            threads=1,
        )


class Readout(nn.Module):
    """Our readout of all subsets; `shapes` are the shapes of the inputs of a head."""

    shapes = ((BATCH, MODALITIES, DIM), (BATCH, MODALITIES, PATCHES, DIM))

    def __init__(self) -> None:
        super().__init__()
        self.readout = SubsetReadout(DIM, MODALITIES, num_heads=HEADS)

    def forward(self, globals_: Tensor, patches: Tensor) -> Tensor:
        return self.readout(torch.cat([globals_[:, :, None], patches], dim=2))


class Demo(Readout):
    """Our layers of DeMo in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.reduction = GlobalPatchReduction(DIM, MODALITIES)
        self.experts = GatedExperts(DIM, len(SUBSETS))

    def forward(self, globals_: Tensor, patches: Tensor) -> Tensor:
        return self.experts(super().forward(self.reduction(globals_, patches), patches))


class Experts(nn.Module):
    """Our gated experts of the features of all subsets."""

    shapes = ((BATCH, len(SUBSETS), DIM),)

    def __init__(self) -> None:
        super().__init__()
        self.experts = GatedExperts(DIM, len(SUBSETS))

    def forward(self, features: Tensor) -> Tensor:
        return self.experts(features)


class Aggregation(nn.Module):
    """Our readout of the tokens of several experts."""

    shapes = ((BATCH, MODALITIES, DIM), (BATCH, EXPERTS, MODALITIES * PATCHES, DIM))

    def __init__(self) -> None:
        super().__init__()
        self.readout = ExpertReadout(DIM, num_heads=HEADS)

    def forward(self, globals_: Tensor, tokens: Tensor) -> Tensor:
        return self.readout(globals_, tokens)


class WrittenReadout(nn.Module):
    """Hierarchical decoupling with one torch module per subset."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        readout = ours.get_submodule("readout")
        self.queries = nn.Parameter(readout.get_parameter("queries").detach().clone())
        self.attentions = nn.ModuleList(nn.MultiheadAttention(DIM, HEADS, batch_first=True) for _ in SUBSETS)
        with torch.no_grad():
            for s, attention in enumerate(self.attentions):
                assert isinstance(attention, nn.MultiheadAttention)
                weights = [readout.get_parameter(f"{part}_weight")[s] for part in ("query", "key", "value")]
                attention.get_parameter("in_proj_weight").copy_(torch.cat(weights))
                attention.out_proj.weight.copy_(readout.get_parameter("out_weight")[s])

    def forward(self, globals_: Tensor, patches: Tensor) -> Tensor:
        results = []
        for query, attention, members in zip(self.queries, self.attentions, SUBSETS, strict=True):
            context = torch.cat([part for m in members for part in (globals_[:, m : m + 1], patches[:, m])], dim=1)
            results.append(attention(query.expand(len(context), 1, -1), context, context, need_weights=False)[0])
        return torch.cat(results, dim=1)


class WrittenExperts(nn.Module):
    """Attention-triggered experts with a small network per head and feature."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        experts = ours.get_submodule("experts")
        assert isinstance(experts, GatedExperts)
        self.heads, width = experts.num_heads, DIM // experts.num_heads
        self.query = nn.Sequential(nn.Linear(len(SUBSETS) * DIM, DIM), QuickGELU(), nn.BatchNorm1d(DIM))
        self.query[0].load_state_dict(experts.join.state_dict())
        self.to_query, self.to_key = (nn.Linear(DIM, DIM, bias=False) for _ in range(2))
        self.networks = nn.ModuleList()
        with torch.no_grad():
            self.to_query.weight.copy_(experts.query_weight)
            self.to_key.weight.copy_(experts.key_weight)
            for s in range(len(SUBSETS)):
                for h in range(self.heads):
                    linear = nn.Linear(width, width)
                    linear.weight.copy_(experts.expert_weight[s, h])
                    linear.bias.copy_(experts.expert_bias[s, h])
                    self.networks.append(nn.Sequential(linear, QuickGELU(), nn.BatchNorm1d(width)))

    def forward(self, features: Tensor) -> Tensor:
        query = self.to_query(self.query(features.flatten(1))).unflatten(1, (self.heads, 1, -1))
        key = self.to_key(features).unflatten(2, (self.heads, -1)).transpose(1, 2)
        gates = (query @ key.mT / key.shape[3] ** 0.5).softmax(dim=3)[:, :, 0]
        results = []
        for s, feature in enumerate(features.unbind(1)):
            for h, part in enumerate(feature.chunk(self.heads, dim=1)):
                results.append(gates[:, h, s, None] * self.networks[s * self.heads + h](part))
        return torch.cat(results, dim=1).view(features.shape)


class WrittenDemo(nn.Module):
    """Reduction, decoupling and experts as written."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.readout, self.experts = WrittenReadout(ours), WrittenExperts(ours)
        reduction = ours.get_submodule("reduction")
        assert isinstance(reduction, GlobalPatchReduction)
        self.reductions = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(2 * DIM), nn.Linear(2 * DIM, DIM), QuickGELU()) for _ in range(MODALITIES)
        )
        for m, own in enumerate(self.reductions):
            own.get_submodule("1").load_state_dict({"weight": reduction.weight[m], "bias": reduction.bias[m]})

    def forward(self, globals_: Tensor, patches: Tensor) -> Tensor:
        joined = torch.cat([globals_, patches.mean(dim=2)], dim=2).unbind(1)
        reduced = [reduction(row) for reduction, row in zip(self.reductions, joined, strict=True)]
        return self.experts(self.readout(torch.stack(reduced, dim=1), patches))


class WrittenAggregation(nn.Module):
    """Multi-grained aggregation with keys and values of all tokens of all experts."""

    def __init__(self, ours: nn.Module) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
        self.attention.load_state_dict(ours.get_submodule("readout").state_dict())

    def forward(self, globals_: Tensor, tokens: Tensor) -> Tensor:
        context = tokens.flatten(1, 2)
        return globals_ + self.attention(globals_, context, context, need_weights=False)[0]


class QuickGELU(nn.Module):
    def forward(self, values: Tensor) -> Tensor:
        return values * F.sigmoid(1.702 * values)


class Problem:
    """One of our heads, the same head as written with equal parameters, and inputs for both."""

    def __init__(self, device: str, ours: nn.Module, written: Callable[[nn.Module], nn.Module]) -> None:
        self.layer = ours.to(device)
        self.twin = written(ours).to(device)
        self.reference = written(ours).to(device).double()
        generator = torch.Generator().manual_seed(0)
        shapes = getattr(ours, "shapes", ())
        self.inputs = [torch.randn(shape, generator=generator).to(device) for shape in shapes]
        shape = self.layer(*self.inputs).shape
        self.upstream = torch.randn(shape, generator=generator).to(device)

    def ours(self) -> Outputs:
        return self._run(self.layer, self.inputs, self.upstream)

    def written(self) -> Outputs:
        return self._run(self.twin, self.inputs, self.upstream)

    def exact(self) -> Outputs:
        return self._run(self.reference, [item.double() for item in self.inputs], self.upstream.double())

    @staticmethod
    def _run(layer: nn.Module, inputs: list[Tensor], upstream: Tensor) -> Outputs:
        """Return result and gradients of the inputs; those of parameters differ in shape and are only computed."""
        leaves = [item.detach().requires_grad_() for item in inputs]
        result = layer(*leaves)
        gradients = torch.autograd.grad(result, [*leaves, *layer.parameters()], upstream)
        return result.detach(), *gradients[: len(leaves)]
