"""What the forward and the backward pass of tiled attention share: the cut into tiles and the modulation of a tile."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32

# Elements of a tile: what stays in the caches, and enough for the products on it to outweigh their calls.
TILE = 2**19


class Modulation(NamedTuple):
    """The closed form of eq. 4-7 on the foreground rows of one sample."""

    alpha: Tensor  # heads 1 1
    beta: Tensor  # heads 1 1
    slope: Tensor  # heads 1 tokens
    background: Tensor  # tokens, 1 where the key is background, else 0

    @classmethod
    def of(cls, foreground: Tensor, alpha: Tensor, beta: Tensor) -> "Modulation":
        return cls(alpha, beta, 1 - torch.where(foreground, alpha, beta), (~foreground).to(alpha.dtype))

    def apply(self, logits: Tensor, maximum: Tensor, minimum: Tensor, head: slice) -> None:
        """Modulate in place the logits of some heads, given the extrema of their rows."""
        constant = torch.addcmul(self.beta[head] * minimum, self.alpha[head], maximum, value=-1)
        logits.mul_(self.slope[head]).addcmul_(constant, self.background)


def per_head(strength: Tensor, like: Tensor) -> Tensor:
    """One strength for all heads of `like`, or one for each, as heads 1 1 in the dtype `like` is computed in."""
    return strength.detach().to(at_least_float32(like[:0]).dtype).expand(like.shape[1])[:, None, None]


def wide_rows(tensor: Tensor) -> Tensor:
    """In at least float32. Torch's kernel, called by name, takes the last axis to be dense without looking."""
    tensor = at_least_float32(tensor)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def foreground_first(foreground: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Per sample the order that puts foreground tokens first, and their number."""
    order = (~foreground).to(torch.uint8).argsort(dim=1, stable=True)
    return zip(order, foreground.sum(dim=1).tolist(), strict=True)


def take_rows(tensor: Tensor, order: Tensor) -> Tensor:
    """Rows of one sample, heads tokens head_dim, as tokens heads head_dim in that order and at least float32."""
    return at_least_float32(tensor.transpose(0, 1).index_select(0, order))


def tiles(heads: int, tokens: int, *spans: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Cut heads x rows: several heads a tile where the rows of a span fit, several tiles a head where they do not."""
    most_rows = max(TILE // tokens, 16)
    for start, stop in spans:
        heads_at_once = max(1, min(heads, most_rows // max(stop - start, 1)))
        for head in range(0, heads, heads_at_once):
            for row in range(start, stop, most_rows):
                yield slice(head, min(head + heads_at_once, heads)), slice(row, min(row + most_rows, stop))


def new_buffer(like: Tensor, tokens: int) -> Tensor:
    """Room for one tile. Every tile reuses it: memory fresh from the system would cost more than the arithmetic."""
    return like.new_empty(max(TILE, 16 * tokens))


def tile_in(buffer: Tensor, head: slice, row: slice, tokens: int) -> Tensor:
    """The buffer as a tile, heads rows tokens."""
    heads, rows = head.stop - head.start, row.stop - row.start
    return buffer[: heads * rows * tokens].view(heads, rows, tokens)
