"""Common parts of the towers of all libraries: their interface to `TokenBackbone`, and steps of their forward pass."""

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
    """A vision transformer as tokens in and out: a module that holds the library's `model`."""

    model: nn.Module
    dim: int
    width: int  # of the tokens inside the blocks; dim is that of the tokens returned
    channels: int
    prefix_tokens: int
    class_token: bool
    patch_size: Grid
    mean: Colour
    std: Colour
    positions: str | None  # dotted name of the parameter, (..., tokens, dim); None when positions are rotary only
    position_prefix: int  # how many of its tokens are no patches

    def grid(self) -> Grid: ...

    def parameters(self) -> Iterator[nn.Parameter]: ...

    def get_parameter(self, target: str, /) -> nn.Parameter: ...

    def get_submodule(self, target: str, /) -> nn.Module: ...

    def set_grid(self, grid: Grid) -> None:
        """Tell the model its new size; the caller exchanges the positions afterwards."""
        ...

    def __call__(
        self, images: Tensor, foreground: Tensor | None, offset: Tensor | None, extra: Tensor | None = None, /
    ) -> tuple[Tensor, Tensor]: ...


def new_grid(image_size: tuple[int, int], patch_size: Grid) -> Grid:
    """Rows and columns of patches of an image, or an error when the patches do not divide it."""
    sides = image_size if isinstance(image_size, tuple | list) else ()
    if len(sides) != 2 or not all(isinstance(side, int) for side in sides):
        raise ValueError(f"image_size must be (height, width); received {image_size}")
    (height, width), (rows, columns) = image_size, patch_size
    if min(image_size) < 1 or height % rows or width % columns:
        raise ValueError(f"image_size must be multiples of the patch, {patch_size}; received {image_size}")
    return height // rows, width // columns


def run_block(block: nn.Module, tokens: Tensor, recompute: bool, **arguments: Any) -> Tensor:
    """One block, checkpointed when its library was told so; the mask is an argument, hence the same when recomputed."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, tokens, use_reentrant=False, **arguments)
    return block(tokens, **arguments)


def camera_offsets(embedding: Tensor, cameras: Tensor | None, batch: int) -> Tensor:
    """The embedding of each camera, (batch dim), and their mean for those that have none, or without `cameras`."""
    mean = embedding.mean(dim=0, keepdim=True)
    if cameras is None:
        return mean.expand(batch, -1)
    cameras = cameras.long()  # a narrow type cannot hold the number of all cameras
    seen = (cameras >= 0) & (cameras < len(embedding))
    # Not by square brackets: on a CPU their gradient sums one by one in half precision, and stops at 256.
    return torch.cat([embedding, mean]).index_select(0, torch.where(seen, cameras, len(embedding)))


def add_offset(tokens: Tensor, offset: Tensor | None) -> Tensor:
    """Add (batch count dim) to the first tokens of each image: the class token alone, or all of them."""
    if offset is None:
        return tokens
    count = offset.shape[1]
    return torch.cat([tokens[:, :count] + offset.to(tokens.dtype), tokens[:, count:]], dim=1)


def append_tokens(
    tokens: Tensor, extra: Tensor | None, offset: Tensor | None, norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """Put (batch extra width) behind the tokens, normed as they are, with what the class token gets."""
    if extra is None:
        return tokens
    normed = norm(extra.to(tokens.dtype))
    return torch.cat([tokens, normed if offset is None else normed + offset[:, :1].to(tokens.dtype)], dim=1)


def without_extra(tokens: Tensor, extra: Tensor | None) -> Tensor:
    """The tokens of the model itself, which are all that it pools."""
    return tokens if extra is None else tokens[:, : tokens.shape[1] - extra.shape[1]]


def refuse_patch_dropout(dropout: nn.Module | None, where: str) -> None:
    """An error when `dropout` would leave out patches in this very call: mask and grid count them all."""
    p = getattr(dropout, "prob", 0.0)
    if dropout is not None and dropout.training and p > 0:
        raise ValueError(
            f"patch dropout must be off: it leaves out patches that the mask and the grid count; received {p}. "
            f"Build the model without it, or set {where} = torch.nn.Identity()"
        )
