"""Resizing of position embeddings to another grid of patches.

The grids are arguments, because the embeddings of 16 x 8 and of 8 x 16 patches have the same shape.
"""

import math

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from stmi_layers._precision import at_least_float32
from stmi_layers._typing import typed

# The parameter's name in open_clip, timm, transformers (Dinov2) and transformers (CLIP, SigLIP).
POSITION_NAMES = ("positional_embedding", "pos_embed", "position_embeddings", "position_embedding.weight")

# Entry of a state dict in which TokenBackbone stores the grid of its positions: rows, columns.
GRID_NAME = "position_grid"


@typed
def resize_positions(
    positions: Float[Tensor, "tokens dim"],
    old_grid: tuple[int, int],
    new_grid: tuple[int, int],
    *,
    prefix_tokens: int,
) -> Float[Tensor, "new_tokens dim"]:
    """Interpolate learned position embeddings from one grid of patches to another.

    The embeddings of the patches form a map of size `old_grid`, which is resized by bicubic interpolation with
    antialiasing. The embeddings of prefix tokens have no position in the map and are copied.

    Args:
        positions: one embedding per token, prefix tokens first, then the patches row by row.
        old_grid: rows and columns of patches of `positions`.
        new_grid: rows and columns of patches of the result.
        prefix_tokens: number of class and register tokens that have an embedding; at least 0.

    Returns:
        The embeddings for `new_grid`, in the dtype of `positions`, computed in at least float32; `positions` itself
        when the grids are equal.

    Raises:
        ValueError: when a side of a grid is below 1, `prefix_tokens` is negative, or the number of `positions` is not
            the number of patches of `old_grid` plus `prefix_tokens`.

    Examples:
        >>> positions = torch.tensor([[9.0], [1.0], [1.0], [3.0], [3.0]])  # a class token, then 2 x 2 patches
        >>> resize_positions(positions, (2, 2), (2, 1), prefix_tokens=1)
        tensor([[9.],
                [1.],
                [3.]])
    """
    if min(*old_grid, *new_grid) < 1 or prefix_tokens < 0:
        rule = "grids must be at least 1 x 1 and prefix_tokens at least 0"
        raise ValueError(f"{rule}; received {old_grid}, {new_grid} and prefix_tokens={prefix_tokens}")
    rows, columns = old_grid
    if len(positions) != prefix_tokens + rows * columns:
        raise ValueError(
            f"positions must hold prefix_tokens + rows * columns = {prefix_tokens} + {rows} * {columns} = "
            f"{prefix_tokens + rows * columns} tokens for old_grid={old_grid}; received {len(positions)}"
        )
    if old_grid == new_grid:
        return positions
    prefix, patches = positions[:prefix_tokens], positions[prefix_tokens:]
    image = rearrange(at_least_float32(patches), "(rows columns) dim -> 1 dim rows columns", rows=rows)
    resized = F.interpolate(image, new_grid, mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([prefix, rearrange(resized, "1 dim rows columns -> (rows columns) dim").to(positions.dtype)])


def square_grid(patches: int) -> tuple[int, int] | None:
    """Return the square grid with this number of patches, or None when there is no such square.

    Examples:
        >>> square_grid(196), square_grid(128)
        ((14, 14), None)
    """
    side = math.isqrt(patches)
    return (side, side) if side and side * side == patches else None


def position_grids(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Find the learned positions of patches in a vision transformer of open_clip, timm or transformers.

    Args:
        model: the transformer, or a model that contains several.

    Returns:
        Rows and columns of patches by the name of the parameter. Positions of words are left out, because they have no
        grid.
    """
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    found: dict[str, tuple[int, int]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        grid = _patch_grid(module)
        candidates = [f"{prefix}.{leaf}" if prefix else leaf for leaf in POSITION_NAMES]
        found |= {name: grid for name in candidates if grid is not None and name in names}
    return found


def _patch_grid(module: nn.Module) -> tuple[int, int] | None:
    for holder in (module, getattr(module, "patch_embed", None), getattr(module, "patch_embeddings", None)):
        grid = getattr(holder, "grid_size", None)
        if isinstance(grid, tuple):
            return grid
        sides = [getattr(holder, name, None) for name in ("image_size", "patch_size")]
        image, patch = ((side, side) if isinstance(side, int) else side for side in sides)
        if image is not None and patch is not None:
            return image[0] // patch[0], image[1] // patch[1]
    return None
