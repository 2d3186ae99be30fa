"""What both passes of tiled attention share: the mask of a sample, its rows in order, the cut into tiles."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32

# Elements of a tile: what stays in the caches, and enough for the products on it to outweigh their calls.
TILE = 2**19


class Sample(NamedTuple):
    """The mask of one sample, and the closed form of eq. 4-7 that follows from it."""

    order: Tensor  # tokens, those of the foreground first
    place: Tensor  # of each token in that order
    split: int  # number of foreground tokens
    background: Tensor  # tokens, 1 where the key is background, else 0
    factor: Tensor  # tokens heads 1, in that order: of the rows of queries, before they meet the keys
    slope: Tensor  # heads 1 tokens: of the logits of foreground rows, key by key
    alpha: Tensor  # heads 1 1
    beta: Tensor  # heads 1 1

    def modulate(self, logits: Tensor, maximum: Tensor, minimum: Tensor, head: slice, out: Tensor) -> Tensor:
        """Logits of foreground rows, given the extrema of the rows."""
        constant = torch.addcmul(self.beta[head] * minimum, self.alpha[head], maximum, value=-1)
        return torch.mul(logits, self.slope[head], out=out).addcmul_(constant, self.background)


def samples(foreground: Tensor, alpha: Tensor, beta: Tensor, heads: int, scale: float) -> list[Sample]:
    """One for each sample; `alpha` and `beta` hold one strength for all heads or one for each."""
    alpha, beta = (strength.expand(heads)[:, None, None] for strength in (alpha, beta))
    background = (~foreground).to(alpha.dtype)
    order = (~foreground).to(torch.uint8).argsort(dim=1, stable=True)
    place = order.argsort(dim=1)
    # A background row is plain attention at another temperature: beta * min is constant along it.
    factor = (1 - background.gather(1, order)[:, :, None, None] * beta[:, 0]) * scale
    slope = torch.addcmul(1 - alpha, background[:, None, None, :], alpha - beta)
    of_samples = zip(order, place, foreground.sum(dim=1).tolist(), background, factor, slope, strict=True)
    return [
        Sample(order, place, split, background, factor, slope, alpha, beta)
        for order, place, split, background, factor, slope in of_samples
    ]


def wide_rows(tensor: Tensor) -> Tensor:
    """In at least float32. Torch's kernel, called by name, takes the last axis to be dense without looking."""
    tensor = at_least_float32(tensor)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def take_rows(tensor: Tensor, order: Tensor) -> Tensor:
    """Rows of one sample, heads tokens head_dim, as tokens heads head_dim in that order and at least float32."""
    return at_least_float32(tensor.transpose(0, 1).index_select(0, order))


def put_rows(target: Tensor, rows: Tensor, place: Tensor) -> None:
    """Write rows, tokens heads head_dim, back to where their tokens were."""
    if rows.dtype is target.dtype:
        torch.index_select(rows, 0, place, out=target)
    else:
        target.copy_(rows.index_select(0, place))


def tiles(heads: int, rows: int, tokens: int) -> Iterator[tuple[slice, slice]]:
    """Cut heads x rows evenly: several heads a tile where all rows of a head fit, several tiles a head elsewhere."""
    most_rows = _most_rows(tokens)
    heads_at_once, rows_at_once = _even(heads, most_rows // max(rows, 1)), _even(rows, most_rows)
    for head in range(0, heads, heads_at_once):
        for row in range(0, rows, rows_at_once):
            yield slice(head, min(head + heads_at_once, heads)), slice(row, min(row + rows_at_once, rows))


def _most_rows(tokens: int) -> int:
    return max(TILE // tokens, 16)


def _even(count: int, most: int) -> int:
    """The size of equal parts of `count`, at most `most`."""
    parts = math.ceil(count / max(most, 1))
    return math.ceil(count / max(parts, 1)) or 1


def new_buffer(like: Tensor, heads: int, rows: int, tokens: int) -> Tensor:
    """Room for one tile. Every tile reuses it: memory fresh from the system would cost more than the arithmetic."""
    return like.new_empty(min(heads * rows, _most_rows(tokens)) * tokens)


def tile_in(buffer: Tensor, head: slice, row: slice, tokens: int) -> Tensor:
    """The buffer as a tile, heads rows tokens."""
    heads, rows = head.stop - head.start, row.stop - row.start
    return buffer[: heads * rows * tokens].view(heads, rows, tokens)


def softmax_backward(gradient: Tensor, weights: Tensor) -> None:
    """Turn the gradient of the weights into that of their logits, in place."""
    torch.ops.aten._softmax_backward_data.out(gradient, weights, -1, gradient.dtype, grad_input=gradient)


def add_to_extrema(delta: Tensor, logits: Tensor, extremum: Tensor, gradient: Tensor, scratch: Tensor) -> None:
    """Add the gradient of the extremum of each row to that of the logits which reach it, evenly where several do."""
    reached = torch.eq(logits, extremum, out=scratch)
    delta.addcmul_(reached, gradient / reached.sum(dim=-1, keepdim=True))
