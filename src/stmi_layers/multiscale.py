r"""Attention over several grids at once, steered by a segmentation mask.

Patches are pooled to coarser cells under the mask, and a cell with little foreground gets less attention. The layer is
for systems such as FusionSegReID / PS-ReID (<https://arxiv.org/abs/2503.21595>). That paper names a multi-scale
segmentation-guided attention and publishes no formula; the formulas here are our own reading.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from stmi_layers._checks import check_heads
from stmi_layers._precision import at_least_float32, without_autocast
from stmi_layers._typing import typed

DELTA = 1e-4


@typed
def mask_pooled_cells(
    patches: Float[Tensor, "batch patches dim"],
    mask: Float[Tensor, "batch patches"] | Bool[Tensor, "batch patches"] | None,
    grid: tuple[int, int],
    scale: int,
) -> tuple[Float[Tensor, "batch cells dim"], Float[Tensor, "batch cells"]]:
    r"""Pool patches to cells of `scale` by `scale`, weighted by how much of each patch is foreground.

    $$X_c = \frac{\sum_{n \in c} (w_n + \delta)\, \text{patches}_n}{\sum_{n \in c} (w_n + \delta)}, \qquad
    s_c = \frac{1}{\text{scale}^2} \sum_{n \in c} w_n$$

    $w$ is the `mask` and $\delta = 10^{-4}$, so that a cell without foreground is the plain mean of its patches. Both
    results are computed in at least float32.

    Args:
        patches: patches, row by row.
        mask: share of each patch that is foreground, True or between 0 and 1; None means foreground everywhere.
        grid: rows and columns of patches, multiples of `scale`.
        scale: side of a cell, in patches.

    Returns:
        The cells, row by row, in the dtype of `patches`, and the share $s$ of each that is foreground, in at least
        float32.

    Raises:
        ValueError: when `grid` does not hold as many cells as `patches`, or `scale` does not divide `grid`.

    Examples:
        >>> patches, mask = torch.tensor([[[2.0], [4.0], [6.0], [8.0]]]), torch.tensor([[True, True, False, False]])
        >>> cells, shares = mask_pooled_cells(patches, mask, (2, 2), 2)
        >>> round(cells.item(), 2), shares.item()
        (3.0, 0.5)
    """
    _check_grid(patches.shape[1], grid, (scale,))
    with without_autocast(patches):
        wide = at_least_float32(patches)
        weights = torch.ones_like(wide[..., 0]) if mask is None else mask.to(wide.dtype)
        layout = {"rows": grid[0] // scale, "columns": grid[1] // scale, "down": scale, "across": scale}
        pattern = "b (rows down columns across) ... -> b (rows columns) (down across) ..."
        wide, weights = rearrange(wide, pattern, **layout), rearrange(weights, pattern, **layout)
        shares = (weights + DELTA) / (weights + DELTA).sum(dim=2, keepdim=True)
        return torch.einsum("bcn, bcnd -> bcd", shares, wide).to(patches.dtype), weights.mean(dim=2)


class SegmentationGuidedPooling(nn.Module):
    r"""Lets queries read the patches of all modalities at several scales, foreground first.

    $$\text{queries} + W_o \operatorname{concat}_h \operatorname{softmax}_c{\Big(
    \frac{q_h k_{hc}}{\sqrt{d}} + \beta_h \log(s_c + \delta) \Big)}\, v_{hc}$$

    Keys and values are the [`mask_pooled_cells`][stmi_layers.multiscale.mask_pooled_cells] of all `scales` together,
    and $s$ is their share of foreground. The layer learns $\beta_h > 0$ per head, as a logarithm: near 0 the mask does
    not matter, and at 1 the background of a hard mask gets almost no attention. Class tokens and text tokens can be
    queries, in any number. Without a mask this is plain attention over all scales; a mask of ones and a mask of zeros
    give the same result.

    The cells of a missing modality are no keys. A sample without any modality returns its queries. The key part of
    `in_proj_bias` has no effect.

    Differences from the paper: the formula of the paper is not public, so that the whole layer is our reading.

    Args:
        dim: width of the tokens.
        grid: rows and columns of patches.
        scales: sides of the cells, in patches; each divides the grid.
        num_heads: number of heads; divides `dim`.
        beta: initial $\beta_h$ of every head, finite and above 0.
        device: device of the parameters; torch's default device if None.
        dtype: data type of the parameters; torch's default dtype if None.

    Raises:
        ValueError: when `num_heads` does not divide `dim`, `scales` is empty or holds a number that does not divide
            `grid`, or `beta` is not finite and positive. `forward` also raises ValueError for inputs of the wrong size.

    Examples:
        >>> pooling = SegmentationGuidedPooling(dim=8, grid=(8, 4), num_heads=2)
        >>> queries, patches, mask = torch.randn(2, 3, 8), torch.randn(2, 3, 32, 8), torch.rand(2, 3, 32)
        >>> pooling(queries, patches, mask).shape
        torch.Size([2, 3, 8])
    """

    def __init__(
        self,
        dim: int,
        grid: tuple[int, int],
        *,
        scales: tuple[int, ...] = (1, 2, 4),
        num_heads: int = 8,
        beta: float = 0.1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        if not scales:
            raise ValueError("scales must hold at least one number; received ()")
        _check_grid(grid[0] * grid[1], grid, scales)
        if not (beta > 0 and math.isfinite(beta)):
            raise ValueError(f"beta must be a finite number above 0; received {beta}")
        self.dim, self.grid, self.scales, self.num_heads, self.initial_beta = dim, grid, scales, num_heads, beta
        factory = {"device": device, "dtype": dtype}
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim, **factory))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * dim, **factory))
        self.out_proj = nn.Linear(dim, dim, **factory)
        self.log_beta = nn.Parameter(torch.empty(num_heads, **factory))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of `nn.MultiheadAttention`, and `beta` for every head."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        self.out_proj.reset_parameters()
        nn.init.zeros_(self.out_proj.bias)
        nn.init.constant_(self.log_beta, math.log(self.initial_beta))

    @typed
    def forward(
        self,
        queries: Float[Tensor, "batch queries dim"],
        patches: Float[Tensor, "batch modalities patches dim"],
        mask: Float[Tensor, "batch modalities patches"] | Bool[Tensor, "batch modalities patches"] | None = None,
        present: Bool[Tensor, "batch modalities"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Return `queries` plus what they read; `mask` is the share of each patch that is foreground."""
        if queries.shape[-1] != self.dim:
            raise ValueError(f"queries must have width dim={self.dim}; received shape {tuple(queries.shape)}")
        _check_grid(patches.shape[2], self.grid, self.scales)
        if present is not None:
            patches = torch.where(present[..., None, None], patches, 0.0)
            if mask is not None:
                there = present[..., None]
                mask = mask & there if mask.dtype == torch.bool else mask.masked_fill(~there, 0)
        flat, flat_mask = patches.flatten(0, 1), None if mask is None else mask.flatten(0, 1)
        pooled = [mask_pooled_cells(flat, flat_mask, self.grid, scale) for scale in self.scales]
        cells, shares = (torch.cat(parts, dim=1).unflatten(0, patches.shape[:2]) for parts in zip(*pooled, strict=True))
        attended = self._attend(queries, cells.flatten(1, 2), shares, present)
        output = (queries + attended).to(queries.dtype)
        return output if present is None else torch.where(present.any(dim=1)[:, None, None], output, queries)

    def _attend(self, queries: Tensor, cells: Tensor, shares: Tensor, present: Tensor | None) -> Tensor:
        """Attend without projecting the cells to keys and values, because the queries are fewer."""
        split = {"pattern": "(heads width) ... -> heads width ...", "heads": self.num_heads}
        weights = [rearrange(part, **split) for part in self.in_proj_weight.chunk(3)]
        query_bias, _, value_bias = self.in_proj_bias.chunk(3)
        query = F.linear(queries, weights[0].flatten(0, 1), query_bias).unflatten(2, (self.num_heads, -1))
        with without_autocast(queries):
            wide = at_least_float32(query) * query.shape[-1] ** -0.5
            rows = torch.einsum("bqhw, hwc -> bhqc", wide, weights[1].to(wide.dtype))
            strength = self.log_beta.to(wide.dtype).exp()[:, None, None]
            logits = torch.einsum("bhqc, bnc -> bhqn", rows, cells.to(wide.dtype))
            logits = logits + strength * (shares.to(wide.dtype) + DELTA).log().flatten(1)[:, None, None]
            if present is not None:
                keep = present[..., None].expand_as(shares).flatten(1)[:, None, None]
                logits = logits.masked_fill(~keep, torch.finfo(logits.dtype).min)
            attention = logits.softmax(dim=-1)
        read = torch.einsum("bhqn, bnc -> bhqc", attention.to(cells.dtype), cells)
        values = torch.einsum("bhqc, hwc -> bqhw", read, weights[2]).flatten(2) + value_bias
        return self.out_proj(values)

    def extra_repr(self) -> str:
        options = f"scales={self.scales}, num_heads={self.num_heads}, beta={self.initial_beta}"
        return f"dim={self.dim}, grid={self.grid}, {options}"


def _check_grid(patches: int, grid: tuple[int, int], scales: tuple[int, ...]) -> None:
    if patches != grid[0] * grid[1]:
        raise ValueError(f"patches must fill the grid {grid}; received {patches} patches")
    for scale in scales:
        if scale < 1 or grid[0] % scale or grid[1] % scale:
            raise ValueError(f"scale must be at least 1 and divide the grid {grid}; received {scale}")
