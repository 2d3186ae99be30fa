"""The deformable readout (CDA) against its formulas written down with convolutions and `grid_sample`."""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.floor import products_alone
from benchmarks.runner import Comparison, Contender, Outputs, Target
from stmi_layers.deformable_readout import DeformableReadout

BATCH, MODALITIES, DIM, GRID, REACH = 8, 3, 512, (16, 8), (6.25, 8.75)


def comparisons(device: str) -> Iterator[Comparison]:
    """Compare one network for all modalities, and one network per modality."""
    for offsets in ("shared", "diagonal"):
        problem = Problem(device, offsets)
        yield Comparison(
            name=f"deformable readout, {offsets}, forward and backward",
            contenders={
                "as written": Contender(problem.literal, problem.exact),
                "ours": Contender(problem.ours, problem.exact),
                "products alone": products_alone(problem.ours),
            },
            targets=(Target("time", 0.7), Target("memory", 1.0)) if offsets == "shared" else (),
            threads=1 if device == "cpu" else None,
        )


class Problem:
    """Queries, maps, and a readout whose parameters both contenders use; few sampling places leave the map."""

    def __init__(self, device: str, offsets: str) -> None:
        generator = torch.Generator().manual_seed(0)
        options = {"offsets": offsets, "reference": "shifted", "device": device}
        self.readout = DeformableReadout(DIM, MODALITIES, GRID, max_offset=REACH, **options)  # pyright: ignore
        shapes = ((BATCH, 2 * MODALITIES, DIM), (BATCH, MODALITIES, GRID[0] * GRID[1], DIM))
        self.queries, self.patches = (torch.randn(shape, generator=generator).to(device) for shape in shapes)
        self.upstream = torch.randn(shapes[0], generator=generator).to(device)

    def ours(self) -> Outputs:
        return self._run(self.readout, self.readout, torch.float32)

    def literal(self) -> Outputs:
        return self._run(self.readout, as_written(self.readout), torch.float32)

    def exact(self) -> Outputs:
        double = DeformableReadout(**_options(self.readout), dtype=torch.float64, device=self.queries.device)
        double.load_state_dict(self.readout.state_dict())
        return self._run(double, as_written(double), torch.float64)

    def _run(self, readout: DeformableReadout, call, dtype: torch.dtype) -> Outputs:
        leaves = [item.to(dtype).detach().requires_grad_() for item in (self.queries, self.patches)]
        result = call(*leaves)
        leaves += readout.parameters()
        return result.detach(), *torch.autograd.grad(result, leaves, self.upstream.to(dtype))


def _options(readout: DeformableReadout) -> dict:
    names = ("dim", "num_modalities", "grid", "max_offset", "offsets", "reference")
    return {name: getattr(readout, name) for name in names}


def as_written(readout: DeformableReadout):
    """Return the formulas with their convolutions, on maps (batch dim height width)."""

    def call(queries: Tensor, patches: Tensor) -> Tensor:
        maps = [tokens.transpose(1, 2).unflatten(2, readout.grid) for tokens in patches.unbind(1)]
        inputs = [torch.cat(maps, dim=1)] if readout.offsets == "shared" else maps
        places = [_places(readout, *pair) for pair in zip(readout.networks, inputs, strict=True)]
        places = places * (len(maps) if len(places) == 1 else 1)
        pairs = zip(maps, places, strict=True)
        samples = torch.cat([F.grid_sample(*pair, align_corners=True).flatten(2) for pair in pairs], dim=2)
        weights, biases = readout.in_proj_weight.chunk(3), readout.in_proj_bias.chunk(3)
        columns = (queries.transpose(1, 2), samples, samples)
        parts = zip(columns, weights, biases, strict=True)
        query, key, value = (F.conv1d(part, weight[..., None], bias) for part, weight, bias in parts)
        attention = (query.transpose(1, 2) @ key * readout.dim**-0.5).softmax(dim=-1)
        read = value @ attention.transpose(1, 2)
        out = readout.out_proj
        return queries + F.conv1d(read, out.weight[..., None], out.bias).transpose(1, 2)

    return call


def _places(readout: DeformableReadout, network: Any, maps: Tensor) -> Tensor:
    """Compute the positions that one network samples, (batch rows columns 2) in the units of `grid_sample`."""
    project, window, point = network.project, network.window, network.point
    hidden = F.gelu(F.conv2d(maps, project.weight[..., None, None], project.bias))
    raw = F.conv2d(F.gelu(window(hidden)), point.weight[..., None, None]).tanh()
    sides = zip(readout.grid, raw.shape[2:], readout.max_offset, (0, -1), strict=True)
    axes = []
    for axis, (side, count, reach, channel) in enumerate(sides):
        first = 2.0 + 2.0 * torch.arange(count, device=maps.device, dtype=maps.dtype)
        first = first[:, None] if axis == 0 else first
        axes.append((2 * (first + reach * raw[:, channel]) / (side - 1) - 1).clamp(-1, 1))
    return torch.stack(axes[::-1], dim=-1)
