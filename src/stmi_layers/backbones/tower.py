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


def run_block(block: nn.Module, tokens: Tensor, recompute: bool, **arguments: Any) -> Tensor:
    """One block, checkpointed when its library was told so; the mask is an argument, hence the same when recomputed."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(block, tokens, use_reentrant=False, **arguments)
    return block(tokens, **arguments)


def add_to_class_token(tokens: Tensor, offset: Tensor | None) -> Tensor:
    """Add (batch dim) to the first token of each image."""
    if offset is None:
        return tokens
    return torch.cat([tokens[:, :1] + offset[:, None].to(tokens.dtype), tokens[:, 1:]], dim=1)


def append_tokens(
    tokens: Tensor, extra: Tensor | None, offset: Tensor | None, norm: Callable[[Tensor], Tensor]
) -> Tensor:
    """Put (batch extra width) behind the tokens, normed as they are, with what the class token gets."""
    if extra is None:
        return tokens
    normed = norm(extra.to(tokens.dtype))
    return torch.cat([tokens, normed if offset is None else normed + offset[:, None].to(tokens.dtype)], dim=1)


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
