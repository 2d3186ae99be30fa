"""Common parts of both passes of tiled attention: sorted rows of a sample, their split into tiles, the modulation."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32

# Elements of a tile: few enough for the caches, and enough for products to take longer than their calls.
TILE = 2**19


class Modulation(NamedTuple):
    """Eq. 4-7 in closed form: a slope for every logit, and a constant for every foreground row.

    All fields broadcast with the logits, whose last axes are heads, rows and columns.
    """

    alpha: Tensor | float
    beta: Tensor | float
    slope: Tensor
    outward: Tensor  # 1 in background columns, which get the constant; else 0
    rows: Tensor | None = None  # 1 in foreground rows, else 0; None when all rows are foreground

    def apply(self, logits: Tensor, maximum: Tensor, minimum: Tensor, out: Tensor) -> Tensor:
        """Write the modulated logits into `out` and return it; `maximum` and `minimum` are those of the rows."""
        constant = (minimum * self.beta).sub_(maximum * self.alpha)
        constant = constant if self.rows is None else constant.mul_(self.rows)
        return torch.mul(logits, self.slope, out=out).addcmul_(constant, self.outward)


class Piece(NamedTuple):
    """Some heads of one sample, few enough for copies of their rows."""

    sample: int
    heads: slice
    order: Tensor  # indices of the tokens, foreground first
    place: Tensor  # position of each token in `order`
    split: int  # number of foreground tokens
    factor: Tensor  # (tokens heads 1), in the order of `order`: factor of the queries before the product with keys
    alpha: Tensor  # (heads 1 1)
    beta: Tensor  # (heads 1 1)
    slope: Tensor  # (heads 1 tokens), of foreground rows
    outward: Tensor  # (1 tokens); 1 in the background, else 0

    def modulation(self, head: slice) -> Modulation:
        """Return the modulation of the foreground rows of some of the heads."""
        return Modulation(self.alpha[head], self.beta[head], self.slope[head], self.outward)


def pieces(
    query: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float, *, most: int
) -> Iterator[Piece]:
    """Yield all heads of all samples, about `most` elements of `query` at once; strengths are shared or per head."""
    _, heads, tokens, head_dim = query.shape
    alpha, beta = (strength.expand(heads)[:, None, None] for strength in (alpha, beta))
    background = (~foreground).to(alpha.dtype)
    order = (~foreground).to(torch.uint8).argsort(dim=1, stable=True)
    place = order.argsort(dim=1)
    # A background row is plain attention at another temperature: beta * min is constant along it.
    factor = (1 - background.gather(1, order)[:, :, None, None] * beta[:, 0]) * scale
    slope = torch.addcmul(1 - alpha, background[:, None, None, :], alpha - beta)
    at_once = _even_heads(heads, most // (tokens * head_dim))
    for sample, split in enumerate(foreground.sum(dim=1).tolist()):
        for first in range(0, heads, at_once):
            some = slice(first, min(first + at_once, heads))
            modulation = alpha[some], beta[some], slope[sample, some], background[sample, None]
            yield Piece(sample, some, order[sample], place[sample], split, factor[sample, :, some], *modulation)


def wide_rows(tensor: Tensor) -> Tensor:
    """Return rows in at least float32 with a dense last axis, which torch's kernel, called by name, does not check."""
    tensor = at_least_float32(tensor)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def take_rows(tensor: Tensor, order: Tensor) -> Tensor:
    """Return rows of a piece, (heads tokens head_dim), as (tokens heads head_dim), ordered, in at least float32."""
    return at_least_float32(tensor.transpose(0, 1).index_select(0, order))


def put_rows(target: Tensor, rows: Tensor, place: Tensor) -> None:
    """Write ordered rows, (tokens heads head_dim), back to the positions of their tokens; `rows` may be `target`."""
    target.copy_(rows.index_select(0, place))


def cut(heads: int, rows: int, tokens: int) -> Iterator[tuple[slice, slice]]:
    """Split heads x rows into tiles; if possible, every tile has at least one head per thread."""
    most_rows = _most_rows(tokens)
    heads_at_once = max(_even_heads(heads, most_rows // rows), min(heads, torch.get_num_threads()))
    rows_at_once = _even(rows, most_rows // heads_at_once)
    for head in range(0, heads, heads_at_once):
        for row in range(0, rows, rows_at_once):
            yield slice(head, min(head + heads_at_once, heads)), slice(row, min(row + rows_at_once, rows))


def _most_rows(tokens: int) -> int:
    return max(TILE // tokens, 16, torch.get_num_threads())


def _even(count: int, most: int) -> int:
    """Return the size of equal parts of `count`: at most `most`, and at least 1."""
    parts = math.ceil(count / max(most, 1))
    return math.ceil(count / parts)


def _even_heads(heads: int, most: int) -> int:
    """Return `_even`, if possible as a multiple of the threads, which share a batched product by matrices."""
    threads = torch.get_num_threads()
    if heads <= most or most < threads:
        return _even(heads, most)
    return threads * _even(math.ceil(heads / threads), most // threads)


def new_buffer(rows: Tensor, tokens: int) -> Tensor:
    """Return memory for one tile. All tiles reuse it, because new memory would cost more than the arithmetic."""
    count, heads, _ = rows.shape
    return rows.new_empty(min(heads * count, _most_rows(tokens)) * tokens)


def tile_in(buffer: Tensor, head: slice, row: slice, tokens: int) -> Tensor:
    """Return the buffer as a tile, (heads rows tokens)."""
    heads, rows = head.stop - head.start, row.stop - row.start
    return buffer[: heads * rows * tokens].view(heads, rows, tokens)


def exponentials(logits: Tensor) -> Tensor:
    """Turn logits into softmax weights before the division, in place; return the sums of the rows, the divisors.

    Torch's softmax takes longer than these calls, and dividing the attended values is cheaper, because they are fewer.
    As in plain attention, values times the number of tokens must not exceed the greatest number of the dtype.
    """
    logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()
    return logits.sum(dim=-1, keepdim=True)


def softmax_backward(gradient: Tensor, weights: Tensor, incoming: Tensor, attended: Tensor) -> None:
    """Turn the gradient of the weights into the gradient of their logits, in place.

    The sum of weights times their gradients over a row equals the product of the attended values and their gradient.
    """
    inner = (incoming * attended).sum(dim=-1, keepdim=True)
    gradient.sub_(inner.view(*gradient.shape[:-1], 1)).mul_(weights)


def modulation_backward(
    delta: Tensor, logits: Tensor, extrema: tuple[Tensor, Tensor], modulation: Modulation, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn the gradient of modulated logits into the gradient of the logits, in place.

    Args:
        delta: gradient of the modulated logits, (..., heads rows tokens).
        logits: logits before the modulation, of the same shape.
        extrema: maximum and minimum of every row.
        modulation: slopes and constants.
        scratch: memory of the same shape, overwritten.

    Returns:
        The gradients of `alpha` and `beta` per head.
    """
    maximum, minimum = extrema
    others = [axis for axis in range(delta.dim()) if axis != delta.dim() - 3]
    outward = modulation.outward
    of_constant = torch.mul(delta, outward, out=scratch).sum(dim=-1, keepdim=True)
    products = torch.mul(delta, logits, out=scratch)
    of_all = products.sum(dim=-1, keepdim=True)
    of_both = of_all - products.mul_(outward).sum(dim=-1, keepdim=True)
    if modulation.rows is not None:
        of_constant, of_both = of_constant * modulation.rows, of_both * modulation.rows
    of_alpha = -(of_constant * maximum + of_both).sum(dim=others)
    of_beta = (of_constant * minimum + of_both - of_all).sum(dim=others)
    delta.mul_(modulation.slope)
    add_to_extrema(delta, logits, maximum, -modulation.alpha * of_constant, scratch)
    add_to_extrema(delta, logits, minimum, modulation.beta * of_constant, scratch)
    return of_alpha, of_beta


def add_to_extrema(delta: Tensor, logits: Tensor, extremum: Tensor, gradient: Tensor, scratch: Tensor) -> None:
    """Add the gradient of the extremum of each row to the gradients of the logits that equal it, split evenly."""
    reached = torch.eq(logits, extremum, out=scratch)
    delta.addcmul_(reached, gradient / reached.sum(dim=-1, keepdim=True))
