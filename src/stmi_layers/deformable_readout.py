r"""Queries that read token maps at learned positions: cooperative deformable aggregation (CDA).

A network predicts where to sample the maps of all modalities; class and text tokens read the samples.
Paper: "IDEA: Inverted Text with Cooperative Deformable Aggregation for Multi-modal Object Re-Identification",
CVPR 2025, pages 29701-29710. The formulas follow its code, <https://github.com/924973292/IDEA>.
"""

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._checks import check_choice, check_heads, check_positive
from stmi_layers._precision import at_least_float32
from stmi_layers._sampling import bilinear_samples
from stmi_layers._typing import typed
from stmi_layers.cross_attention import read_heads, zero_where_none

Offsets = Literal["shared", "separate", "diagonal"]
Reference = Literal["centred", "shifted"]


@typed
def sampled_cross_attention(
    queries: Float[Tensor, "batch queries dim"],
    patches: Float[Tensor, "batch modalities patches dim"],
    positions: Float[Tensor, " batch #modalities samples 2"],
    grid: tuple[int, int],
    in_proj_weight: Float[Tensor, "3*dim dim"],
    in_proj_bias: Float[Tensor, " 3*dim"] | None,
    out_weight: Float[Tensor, "dim dim"],
    out_bias: Float[Tensor, " dim"] | None,
    *,
    num_heads: int = 1,
    present: Bool[Tensor, "batch modalities"] | None = None,
) -> Float[Tensor, "batch queries dim"]:
    r"""Attend from `queries` to bilinear samples of the token maps of all modalities.

    $$\operatorname{CrossAttn}(\text{queries}, S, S), \qquad
    S_{ms} = \sum_n {\big(1 - |y_{ms} - y_n|\big)_+} {\big(1 - |x_{ms} - x_n|\big)_+}\, \text{patches}_{mn}$$

    $(y_{ms}, x_{ms})$ are the `positions`, $(y_n, x_n)$ row and column of patch $n$, and CrossAttn is
    [`absorbed_cross_attention`][stmi_layers.cross_attention.absorbed_cross_attention]. A position outside the grid
    moves to the border, without gradient. On a patch, the gradient points towards the next row and column.

    Args:
        queries: queries, which read the samples.
        patches: one token map per modality, row by row.
        positions: row and column of each sample, in patches from the first; one set per modality, or one for all.
        grid: rows and columns of patches.
        in_proj_weight: projections to query, key and value, stacked as in `nn.MultiheadAttention`.
        in_proj_bias: biases of these projections, or None.
        out_weight: projection of the concatenated heads.
        out_bias: bias of that projection, or None.
        num_heads: number of heads; divides `dim`.
        present: True for the modalities that a sample has; None for all.

    Returns:
        The result of the attention for each query, without residual; zero where no modality is present.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, or `grid` does not hold as many cells as `patches`.

    Examples:
        >>> row = torch.tensor([[[[0.0, 0.0], [4.0, 8.0]]]])  # a map of 1 x 2 patches
        >>> halfway, one = torch.tensor([[[[0.0, 0.5]]]]), torch.eye(2)
        >>> sampled_cross_attention(torch.zeros(1, 1, 2), row, halfway, (1, 2), one.repeat(3, 1), None, one, None)
        tensor([[[2., 4.]]])
    """
    check_heads(queries.shape[-1], num_heads)
    if patches.shape[2] != grid[0] * grid[1]:
        raise ValueError(f"patches must fill the grid {grid}; received {patches.shape[2]} patches")
    samples = _sample(_maps(patches, present, positions.shape[1] == 1), positions.unbind(1), grid, queries.shape[-1])
    attention = (in_proj_weight, in_proj_bias, num_heads)
    return _read(queries, samples, attention, lambda heads: F.linear(heads, out_weight, out_bias), present)


def _maps(patches: Tensor, present: Tensor | None, joint: bool) -> list[Tensor]:
    """Return the inputs of the networks, (batch patches inputs): all modalities concatenated, or each alone."""
    if present is not None:
        patches = torch.where(present[..., None, None], patches, 0.0)
    return [patches.transpose(1, 2).flatten(2)] if joint else [tokens.contiguous() for tokens in patches.unbind(1)]


def _sample(maps: list[Tensor], positions: Iterable[Tensor], grid: tuple[int, int], dim: int) -> Tensor:
    """Return bilinear samples of all modalities, (batch samples modalities dim)."""
    pairs = zip(maps, positions, strict=True)
    samples = [bilinear_samples(tokens, places, grid).unflatten(2, (-1, dim)) for tokens, places in pairs]
    return torch.cat(samples, dim=2) if len(samples) > 1 else samples[0]


def _read(queries: Tensor, samples: Tensor, attention: Any, project: Any, present: Tensor | None) -> Tensor:
    keep = None if present is None else present[:, None].expand(-1, samples.shape[1], -1).flatten(1)
    return zero_where_none(project(read_heads(queries, samples.flatten(1, 2), *attention, keep=keep)), keep)


class DeformableReadout(nn.Module):
    r"""Lets class and text tokens read all modalities at positions that a network predicts (CDA).

    $$\text{queries} + \operatorname{CrossAttn}\big(\text{queries}, S, S\big), \qquad
    (y, x)_{ij} = r_{ij} + \text{max\_offset} \cdot \tanh(o_{ij})$$

    $o$ is a linear map of every patch, GELU, a depthwise convolution with `kernel` and `stride`, GELU, and a linear map
    to two offsets; $r_{ij}$ is the reference point of a window. $\operatorname{CrossAttn}$ and $S$ are those of
    [`sampled_cross_attention`][stmi_layers.deformable_readout.sampled_cross_attention]. Queries do not see each other,
    so text tokens may be left out. The key part of `in_proj_bias` has no effect.

    A missing modality enters the network as zeros and is never a key; a query with `query_present` False becomes zero.
    A sample without any modality returns its queries.

    Differences from the research code:

    - `max_offset` is given in patches. In the research code it depends on the number of samples, up to 44 patches on an
      8 x 16 grid, where positions outside the picture get no gradient. Grids with one row of samples work.
    - Reference points are the centres of the windows. `reference="shifted"` puts them half a patch further down and to
      the right, as the research code does.
    - Networks predict two offsets; `offsets="diagonal"` predicts one for both axes, a form that no release trains.

    Args:
        dim: width of the tokens.
        num_modalities: number of modalities.
        grid: rows and columns of patches; at least `kernel` each.
        max_offset: largest move of a sample in rows and in columns, in patches, at least 0.
        kernel: side of the window of a sample, in patches.
        stride: step between two windows, in patches.
        offsets: "shared" by all modalities and predicted from all of them, "separate" for each modality and predicted
            from it alone, or "diagonal", which is separate with one number for both axes.
        reference: "centred" or "shifted" reference points.
        num_heads: heads of the attention; divides `dim`.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when an option is out of range, `num_heads` does not divide `dim`, or an input has the wrong size.

    Examples:
        >>> readout = DeformableReadout(dim=8, num_modalities=3, grid=(8, 4))
        >>> readout(torch.randn(2, 6, 8), torch.randn(2, 3, 32, 8)).shape
        torch.Size([2, 6, 8])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int,
        grid: tuple[int, int],
        *,
        max_offset: tuple[float, float] = (4.0, 4.0),
        kernel: int = 4,
        stride: int = 2,
        offsets: Offsets = "shared",
        reference: Reference = "centred",
        num_heads: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        check_positive(num_modalities=num_modalities, kernel=kernel, stride=stride)
        check_choice("offsets", offsets, get_args(Offsets))
        check_choice("reference", reference, get_args(Reference))
        if min(grid) < kernel:
            raise ValueError(f"grid must have at least kernel={kernel} rows and columns; received {grid}")
        if not min(max_offset) >= 0:
            raise ValueError(f"max_offset must be at least 0 patches; received {max_offset}")
        self.dim, self.num_modalities, self.grid, self.num_heads = dim, num_modalities, grid, num_heads
        self.reference = reference
        self.max_offset, self.kernel, self.stride, self.offsets = max_offset, kernel, stride, offsets
        factory = {"device": device, "dtype": dtype}
        inputs, networks = (num_modalities * dim, 1) if offsets == "shared" else (dim, num_modalities)
        sizes = inputs, dim, 1 if offsets == "diagonal" else 2, kernel, stride
        self.networks = nn.ModuleList(_OffsetNetwork(*sizes, **factory) for _ in range(networks))
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim, **factory))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim, **factory))
        self.out_proj = nn.Linear(dim, dim, **factory)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of torch's convolutions and linear maps."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.reset_parameters()
        for parameter in (self.in_proj_weight, self.in_proj_bias):
            nn.init.uniform_(parameter, -(self.dim**-0.5), self.dim**-0.5)

    @typed
    def forward(
        self,
        queries: Float[Tensor, "batch queries dim"],
        patches: Float[Tensor, "batch modalities patches dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
        query_present: Bool[Tensor, "batch queries"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return `queries` plus what they read; `present` is True for the modalities of a sample, None for all."""
        if queries.shape[-1] != self.dim:
            raise ValueError(f"queries must have width dim={self.dim}; received shape {tuple(queries.shape)}")
        if query_present is not None:
            queries = torch.where(query_present[..., None], queries, 0.0)
        maps, attention = self._maps(patches, present), (self.in_proj_weight, self.in_proj_bias, self.num_heads)
        # One map after the other, so that the backward pass is done with one before it holds gradients of the next.
        places = (self._positions(*pair).flatten(1, 2) for pair in zip(self.networks, maps, strict=True))
        samples = _sample(maps, places, self.grid, self.dim)
        output = (queries + _read(queries, samples, attention, self.out_proj, present)).to(queries.dtype)
        return output if query_present is None else torch.where(query_present[..., None], output, 0.0)

    @typed
    def positions(
        self,
        patches: Float[Tensor, "batch modalities patches dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch sets rows columns 2"]:
        """Return row and column of every sample before the cut at the border; one set, or one set per modality."""
        return torch.stack([*map(self._positions, self.networks, self._maps(patches, present))], dim=1)

    def _maps(self, patches: Tensor, present: Tensor | None) -> list[Tensor]:
        if patches.shape[1:] != (self.num_modalities, self.grid[0] * self.grid[1], self.dim):
            rule = f"patches must have num_modalities={self.num_modalities}, fill {self.grid} and have dim={self.dim}"
            raise ValueError(f"{rule}; received shape {tuple(patches.shape)}")
        return _maps(patches, present, self.offsets == "shared")

    def _positions(self, network: nn.Module, tokens: Tensor) -> Tensor:
        moves = at_least_float32(network(tokens.unflatten(1, self.grid))).tanh()
        first = (self.kernel - 1) / 2 if self.reference == "centred" else self.kernel // 2
        rows, columns = (first + self.stride * torch.arange(n, device=moves.device) for n in moves.shape[1:3])
        down = rows[:, None] + self.max_offset[0] * moves[..., 0]
        return torch.stack([down, columns + self.max_offset[1] * moves[..., -1]], dim=-1)

    def extra_repr(self) -> str:
        return (
            f"dim={self.dim}, num_modalities={self.num_modalities}, grid={self.grid}, max_offset={self.max_offset}, "
            f"kernel={self.kernel}, stride={self.stride}, offsets={self.offsets!r}, reference={self.reference!r}, "
            f"num_heads={self.num_heads}"
        )


class _OffsetNetwork(nn.Module):
    """Predicts raw offsets (batch rows columns outputs) from a map (batch height width inputs)."""

    def __init__(self, inputs: int, dim: int, outputs: int, kernel: int, stride: int, **factory: Any) -> None:
        super().__init__()
        self.project = nn.Linear(inputs, dim, **factory)
        self.window = nn.Conv2d(dim, dim, kernel, stride, groups=dim, **factory)
        self.point = nn.Linear(dim, outputs, bias=False, **factory)

    def forward(self, tokens: Tensor) -> Tensor:
        windows = self.window(F.gelu(self.project(tokens)).permute(0, 3, 1, 2))
        return self.point(F.gelu(windows).permute(0, 2, 3, 1))
