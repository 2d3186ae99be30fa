"""Common parts of the towers of all libraries: the interface to `TokenBackbone`, and steps of the forward pass."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Grid = tuple[int, int]
Colour = tuple[float, ...]
Images = Float[Tensor, "batch channels height width"] | Float[Tensor, "batch modalities channels height width"]
Masks = (
    Bool[Tensor, "batch mask_height mask_width"]
    | Float[Tensor, "batch mask_height mask_width"]
    | Bool[Tensor, "batch modalities mask_height mask_width"]
    | Float[Tensor, "batch modalities mask_height mask_width"]
)
Patches = Float[Tensor, "batch patches dim"] | Float[Tensor, "batch modalities patches dim"]
Extra = Float[Tensor, "batch extra inner"] | Float[Tensor, "batch modalities extra inner"]
Globals = Float[Tensor, "batch dim"] | Float[Tensor, "batch modalities dim"]


@runtime_checkable
class Tower(Protocol):
    """Interface of a vision transformer, from images to tokens: a module that holds the library's `model`."""

    model: nn.Module
    dim: int
    width: int  # width of the tokens inside the blocks; dim is the width of the returned tokens
    channels: int
    prefix_tokens: int
    class_token: bool
    patch_size: Grid
    mean: Colour
    std: Colour
    positions: str | None  # dotted name of the parameter, (..., tokens, dim); None when positions are rotary only
    position_prefix: int  # number of prefix tokens among `positions`

    def grid(self) -> Grid: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def get_parameter(self, target: str, /) -> nn.Parameter: ...

    def get_submodule(self, target: str, /) -> nn.Module: ...

    def set_grid(self, grid: Grid) -> None:
        """Set the grid of the model; the caller replaces the positions afterwards."""
        ...

    def __call__(
        self, images: Tensor, foreground: Tensor | None, offset: Tensor | None, extra: Tensor | None = None, /
    ) -> tuple[Tensor, Tensor]: ...


def new_grid(image_size: tuple[int, int], patch_size: Grid) -> Grid:
    """Return the rows and columns of patches of an image; refuse sizes that are no multiples of the patch."""
    sides = image_size if isinstance(image_size, tuple | list) else ()
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"image_size must be (height, width); received {image_size}")
    (height, width), (rows, columns) = image_size, patch_size
    if min(image_size) < 1 or height % rows or width % columns:
        raise ValueError(f"image_size must be multiples of the patch, {patch_size}; received {image_size}")
    return height // rows, width // columns


def run_block(block: nn.Module, tokens: Tensor, recompute: bool, **arguments: Any) -> Tensor:
    """Run one block, with activation checkpointing if `recompute`; recomputation gets the same mask as an argument."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, tokens, use_reentrant=False, **arguments)
    return block(tokens, **arguments)


def camera_offsets(embedding: Tensor, cameras: Tensor | None, batch: int) -> Tensor:
    """Return the embedding of each camera, (batch dim); the mean of all for unknown cameras and for `cameras` None."""
    mean = embedding.mean(dim=0, keepdim=True)
    if cameras is None:
        return mean.expand(batch, -1)
    cameras = cameras.long()  # a narrow type cannot hold the number of all cameras
    seen = (cameras >= 0) & (cameras < len(embedding))
    # Not by square brackets: on a CPU their gradient is summed in half precision, and the sum stops growing at 256.
    return torch.cat([embedding, mean]).index_select(0, torch.where(seen, cameras, len(embedding)))


def add_offset(tokens: Tensor, offset: Tensor | None) -> Tensor:
    """Add `offset` (batch count dim) to the first `count` tokens of each image: the class token, or all tokens."""
    if offset is None:
        return tokens
    count = offset.shape[1]
    return torch.cat([tokens[:, :count] + offset.to(tokens.dtype), tokens[:, count:]], dim=1)


def append_tokens(
    tokens: Tensor, extra: Tensor | None, offset: Tensor | None, norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """Append `extra` (batch extra width) to the tokens, after the same norm and with the offset of the class token."""
    if extra is None:
        return tokens
    normed = norm(extra.to(tokens.dtype))
    return torch.cat([tokens, normed if offset is None else normed + offset[:, :1].to(tokens.dtype)], dim=1)


def without_extra(tokens: Tensor, extra: Tensor | None) -> Tensor:
    """Return the tokens of the model itself: extra tokens are not pooled."""
    return tokens if extra is None else tokens[:, : tokens.shape[1] - extra.shape[1]]


def refuse_patch_dropout(dropout: nn.Module | None, where: str) -> None:
    """Refuse a `dropout` that would leave out patches in this call, because mask and grid count all patches."""
    p = getattr(dropout, "prob", 0.0)
    if dropout is not None and dropout.training and p > 0:
        raise ValueError(
            f"patch dropout must be off: it leaves out patches that the mask and the grid count; received {p}. "
            f"Build the model without it, or set {where} = torch.nn.Identity()"
        )
