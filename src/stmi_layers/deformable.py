r"""Sampling of token maps at a few learned positions.

Equations 23-25 of Signal, the paper "Signal: Selective Interaction and Global-Local Alignment for Multi-Modal Object
Re-Identification", AAAI 2026, <https://arxiv.org/abs/2511.17965>, which follow the deformable attention of Xia et al.,
CVPR 2022, <https://arxiv.org/abs/2201.00520>. Positions are measured in cells of the token grid; the first token is at
row 0 and column 0.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from stmi_layers._checks import check_choice, check_positive
from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._sampling import bilinear_weights
from stmi_layers._typing import typed

Points = Literal["inside", "clamped", "released"]


@typed
def reference_positions(
    grid: tuple[int, int],
    points: tuple[int, int],
    *,
    kernel_size: int = 4,
    stride: int = 4,
    released: bool = False,
    device: torch.device | str | None = None,
) -> Float[Tensor, "height width 2"]:
    r"""Return the centres of the windows of a convolution over the grid: the positions of samples without offset.

    Args:
        grid: rows and columns of the tokens.
        points: rows and columns of the windows.
        kernel_size: rows and columns of a window, in tokens.
        stride: step between the windows, in tokens.
        released: give the positions of the research code of Signal instead, ${(i + \tfrac12)}\,{(\text{size} - 1)} /
            {(\text{points} - 1)}$; the last position in each direction lies beyond the grid.
        device: device of the result; torch's default device if None.

    Returns:
        Row and column of every point, in cells, in float32.

    Raises:
        ValueError: when `released` is True and `points` has a single row or column, because its formula divides by 0.

    Examples:
        >>> reference_positions((8, 4), (2, 1))
        tensor([[[1.5000, 1.5000]],
        <BLANKLINE>
                [[5.5000, 1.5000]]])
    """
    if released and min(points) < 2:
        rule = "points must have at least 2 rows and 2 columns for the released positions"
        raise ValueError(f"{rule}; received {points[0]} x {points[1]}. Take the centred positions")
    axes = []
    for size, count in zip(grid, points, strict=True):
        index = torch.arange(count, device=device, dtype=torch.float32)
        axes.append((index + 0.5) * ((size - 1) / (count - 1)) if released else index * stride + (kernel_size - 1) / 2)
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)


@typed
def deformable_positions(
    offsets: Float[Tensor, "batch height width 2"],
    reference: Float[Tensor, "height width 2"],
    grid: tuple[int, int],
    *,
    reach: tuple[float, float] | None = None,
) -> Float[Tensor, "batch height width 2"]:
    r"""Move the reference positions by the offsets, and keep the results on the grid.

    Args:
        offsets: row and column by which each point moves, in cells.
        reference: row and column of each point, in cells, as of
            [`reference_positions`][stmi_layers.deformable.reference_positions].
        grid: rows and columns of the tokens.
        reach: largest offset in rows and in columns, in cells. Where this offset would leave the grid, all offsets in
            its direction are shortened in proportion, so that every position keeps a gradient. None cuts positions off
            at the border, where their gradient is 0.

    Returns:
        Row and column of every point, in cells, in at least float32. Rows lie in [0, rows - 1] and columns in
        [0, columns - 1]; points inside the grid stay strictly inside while their offsets are below `reach`.

    Examples:
        >>> offsets = torch.tensor([-2.0, 2.0]).view(1, 1, 1, 2)
        >>> reference = torch.tensor([1.0, 1.0]).view(1, 1, 2)
        >>> deformable_positions(offsets, reference, (4, 4))  # one cell off the grid, and cut off
        tensor([[[[0., 3.]]]])
        >>> deformable_positions(offsets, reference, (4, 4), reach=(4.0, 4.0))  # one cell of room up, two right
        tensor([[[[0.5000, 2.0000]]]])
    """
    offsets = at_least_float32(offsets)
    reference = reference.to(offsets.dtype)
    last = offsets.new_tensor([grid[0] - 1, grid[1] - 1])
    if reach is not None:
        limit = offsets.new_tensor(reach)
        room = torch.where(offsets < 0, reference, last - reference).clamp(min=0)
        offsets = offsets * (room.minimum(limit) / limit.clamp(min=torch.finfo(limit.dtype).tiny))
    return torch.minimum((reference + offsets).clamp(min=0), last)


@typed
def sample_tokens(
    tokens: Float[Tensor, "batch rows columns dim"], positions: Float[Tensor, "batch height width 2"]
) -> Float[Tensor, "batch height width dim"]:
    """Interpolate between the four tokens around each position.

    The interpolation is a matrix product in at least float32, whose gradient is the same in every run.

    Args:
        tokens: one map of tokens per sample.
        positions: row and column, in cells; a position beyond the grid moves to the nearest position on the grid.

    Returns:
        One token per position, in the dtype of `tokens`.

    Examples:
        >>> tokens = torch.arange(6.0).view(1, 2, 3, 1)  # rows 0 1 2 and 3 4 5
        >>> sample_tokens(tokens, torch.tensor([0.5, 1.0]).view(1, 1, 1, 2))  # between 1 and 4
        tensor([[[[2.5000]]]])
    """
    with without_autocast(tokens):
        wide = at_least_float32(tokens)
        weights = bilinear_weights(positions.to(wide.dtype).flatten(1, 2), (tokens.shape[1], tokens.shape[2]))
        return (weights @ wide.flatten(1, 2)).to(tokens.dtype).unflatten(1, positions.shape[1:3])


class DeformableSampling(nn.Module):
    r"""Samples a map of tokens at positions that a small network moves (eq. 23-25).

    $$\tilde F = \operatorname{sample}(F, r + \Delta) \qquad \Delta = \text{reach} \cdot
    \tanh\Big(W_o \operatorname{GELU}\big(\operatorname{windows}(\operatorname{GELU}(W F + b))\big)\Big)$$

    $F$ are the `tokens`, sampled by [`sample_tokens`][stmi_layers.deformable.sample_tokens], and $r$ are the
    [`reference_positions`][stmi_layers.deformable.reference_positions]: the centres of the windows of a depth-wise
    convolution. The layer learns `mix` ($W$ and $b$), the convolution `windows` and `offset` ($W_o$).

    Differences from the paper and the research code:

    - The reference positions are the centres of the windows, and offsets that would leave the grid are shortened:
      every position is inside and keeps its gradient. In the research code the last row and column of positions lie
      beyond the grid, are cut off and learn nothing, and the first columns are out of reach. `points="clamped"` keeps
      the centres and cuts positions off; `"released"` follows the research code.
    - Row and column have separate offsets. In the research code one number serves both, so that a point moves along a
      diagonal; `offset_channels=1` gives this reading.
    - One linear map replaces the two linear maps before the first GELU, which compute the same. The script
      `examples/signal_reid/released.py` merges the two maps of a checkpoint.
    - The grid may have any size from one window on. One row or column of points works, except as `"released"`.

    Args:
        dim: width of the tokens.
        kernel_size: rows and columns of a window, in tokens.
        stride: step between the windows, in tokens.
        offset_range: largest offset, above 0, in units of ${(\text{size} - 1)} / {(2\,(\text{points} - 1))}$ cells:
            half the distance between neighbours if the points were spread evenly from the first to the last token.
        offset_channels: 2 for separate offsets of row and column; 1 for one number that scales the reach of both.
        points: "inside", "clamped" or "released", as explained above.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when a size is below 1, `offset_range` is not above 0 or an option is unknown. `forward` also raises
            ValueError for inputs of the wrong size.

    Reference: Signal, AAAI 2026, section on the Local Alignment Module.

    Examples:
        >>> sampling = DeformableSampling(dim=8)
        >>> sampling(torch.randn(2, 16, 8, 8)).shape
        torch.Size([2, 4, 2, 8])
    """

    def __init__(
        self,
        dim: int,
        *,
        kernel_size: int = 4,
        stride: int = 4,
        offset_range: float = 2.0,
        offset_channels: Literal[1, 2] = 2,
        points: Points = "inside",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_positive(dim=dim, kernel_size=kernel_size, stride=stride)
        check_choice("points", points, get_args(Points))
        if not offset_range > 0:
            raise ValueError(f"offset_range must be above 0; received {offset_range}")
        if offset_channels not in (1, 2):
            raise ValueError(f"offset_channels must be 1 or 2; received {offset_channels}")
        self.dim, self.kernel_size, self.stride, self.offset_range = dim, kernel_size, stride, offset_range
        self.offset_channels, self.points = offset_channels, points
        factory = {"device": device, "dtype": dtype}
        self.mix = nn.Linear(dim, dim, **factory)
        self.windows = nn.Conv2d(dim, dim, kernel_size, stride, groups=dim, **factory)
        self.offset = nn.Linear(dim, offset_channels, bias=False, **factory)

    def reset_parameters(self) -> None:
        """Set the initial values: those of the modules of torch."""
        for layer in (self.mix, self.windows, self.offset):
            layer.reset_parameters()

    @typed
    def forward(self, tokens: Float[Tensor, "batch rows columns dim"]) -> Float[Tensor, "batch height width dim"]:
        """Return the tokens at the moved positions, one per window."""
        return sample_tokens(tokens, self.positions(tokens))

    @typed
    def positions(self, tokens: Float[Tensor, "batch rows columns dim"]) -> Float[Tensor, "batch height width 2"]:
        """Return the row and column of every sample of `forward`, in cells."""
        if tokens.shape[-1] != self.dim:
            raise ValueError(f"tokens must have width dim={self.dim}; received shape {tuple(tokens.shape)}")
        grid = tokens.shape[1], tokens.shape[2]
        if min(grid) < self.kernel_size:
            rule = f"tokens must have at least kernel_size={self.kernel_size} rows and columns"
            raise ValueError(f"{rule}; received {grid[0]} x {grid[1]}")
        mixed = F.gelu(self.windows(F.gelu(self.mix(tokens)).permute(0, 3, 1, 2))).permute(0, 2, 3, 1)
        points = mixed.shape[1], mixed.shape[2]
        rows, columns = (
            self.offset_range * (size - 1) / (2 * max(count - 1, 1)) for size, count in zip(grid, points, strict=True)
        )
        offsets = at_least_float32(self.offset(mixed)).tanh()
        offsets = offsets * offsets.new_tensor([rows, columns])
        options = {"kernel_size": self.kernel_size, "stride": self.stride, "released": self.points == "released"}
        reference = reference_positions(grid, points, **options, device=tokens.device)
        reach = (rows, columns) if self.points == "inside" else None
        return deformable_positions(offsets, reference, grid, reach=reach)

    def extra_repr(self) -> str:
        sizes = f"dim={self.dim}, kernel_size={self.kernel_size}, stride={self.stride}"
        offsets = f"offset_range={self.offset_range}, offset_channels={self.offset_channels}"
        return f"{sizes}, {offsets}, points={self.points!r}"
