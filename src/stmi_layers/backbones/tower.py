"""What the towers of all libraries share: the face they show to `TokenBackbone`, and steps of their forward pass."""

from collections.abc import Iterator
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Grid = tuple[int, int]
Colour = tuple[float, ...]


@runtime_checkable
class Tower(Protocol):
    """A vision transformer as tokens in and out: a module that holds the library's `model`."""

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
        self, images: Tensor, foreground: Tensor | None, offset: Tensor | None, /
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


def refuse_patch_dropout(dropout: nn.Module | None, where: str) -> None:
    """An error when `dropout` would leave out patches in this very call: mask and grid count them all."""
    p = getattr(dropout, "prob", 0.0)
    if dropout is not None and dropout.training and p > 0:
        raise ValueError(
            f"patch dropout must be off: it leaves out patches that the mask and the grid count; received {p}. "
            f"Build the model without it, or set {where} = torch.nn.Identity()"
        )
