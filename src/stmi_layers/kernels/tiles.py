"""Common parts of the passes of tiled attention: the mask of a sample, its rows in order, the cut into tiles."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32

# Elements of a tile: what stays in the caches, and enough for the products on it to outweigh their calls.
TILE = 2**19


class Modulation(NamedTuple):
    """Eq. 4-7 in closed form: a slope for every logit, and a constant for every row of the foreground.

    All fields broadcast with the logits, whose last axes are heads, rows and columns.
    """

    alpha: Tensor | float
    beta: Tensor | float
    slope: Tensor
    outward: Tensor  # 1 in columns of the background, where the constant counts; else 0
    rows: Tensor | None = None  # 1 in rows of the foreground, else 0; None where all are

    def apply(self, logits: Tensor, maximum: Tensor, minimum: Tensor, out: Tensor) -> Tensor:
        """Modulated logits, given the extrema of the rows."""
        constant = (minimum * self.beta).sub_(maximum * self.alpha)
        constant = constant if self.rows is None else constant.mul_(self.rows)
        return torch.mul(logits, self.slope, out=out).addcmul_(constant, self.outward)


class Piece(NamedTuple):
    """Some heads of one sample, few enough for copies of their rows."""

    sample: int
    heads: slice
    order: Tensor  # tokens, those of the foreground first
    place: Tensor  # of each token in that order
    split: int  # number of foreground tokens
    factor: Tensor  # tokens heads 1, in that order: of the rows of queries, before they meet the keys
    alpha: Tensor  # heads 1 1
    beta: Tensor  # heads 1 1
    slope: Tensor  # heads 1 tokens; of rows in the foreground
    outward: Tensor  # 1 tokens; 1 in the background, else 0

    def modulation(self, head: slice) -> Modulation:
        """Return how the foreground rows of some of the heads are modulated."""
        return Modulation(self.alpha[head], self.beta[head], self.slope[head], self.outward)


def pieces(
    query: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float, *, most: int
) -> Iterator[Piece]:
    """All heads of all samples, of `query` about `most` elements at once; one strength for all heads or for each."""
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
    """In at least float32. Torch's kernel, called by name, takes the last axis to be dense without looking."""
    tensor = at_least_float32(tensor)
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def take_rows(tensor: Tensor, order: Tensor) -> Tensor:
    """Rows of a piece, heads tokens head_dim, as tokens heads head_dim in that order and at least float32."""
    return at_least_float32(tensor.transpose(0, 1).index_select(0, order))


def put_rows(target: Tensor, rows: Tensor, place: Tensor) -> None:
    """Write rows, tokens heads head_dim, back to where their tokens were; `rows` may be `target` itself."""
    target.copy_(rows.index_select(0, place))


def cut(heads: int, rows: int, tokens: int) -> Iterator[tuple[slice, slice]]:
    """Cut heads x rows into tiles; where it can be, none has fewer heads than there are threads to share them."""
    most_rows = _most_rows(tokens)
    heads_at_once = max(_even_heads(heads, most_rows // rows), min(heads, torch.get_num_threads()))
    rows_at_once = _even(rows, most_rows // heads_at_once)
    for head in range(0, heads, heads_at_once):
        for row in range(0, rows, rows_at_once):
            yield slice(head, min(head + heads_at_once, heads)), slice(row, min(row + rows_at_once, rows))


def _most_rows(tokens: int) -> int:
    return max(TILE // tokens, 16, torch.get_num_threads())


def _even(count: int, most: int) -> int:
    """The size of equal parts of `count`, at most `most` or else 1."""
    parts = math.ceil(count / max(most, 1))
    return math.ceil(count / parts)


def _even_heads(heads: int, most: int) -> int:
    """The same, in multiples of the threads if they are not too many: they share a product of matrices by matrix."""
    threads = torch.get_num_threads()
    if heads <= most or most < threads:
        return _even(heads, most)
    return threads * _even(math.ceil(heads / threads), most // threads)


def new_buffer(rows: Tensor, tokens: int) -> Tensor:
    """Room for one tile. Every tile reuses it: memory fresh from the system would cost more than the arithmetic."""
    count, heads, _ = rows.shape
    return rows.new_empty(min(heads * count, _most_rows(tokens)) * tokens)


def tile_in(buffer: Tensor, head: slice, row: slice, tokens: int) -> Tensor:
    """The buffer as a tile, heads rows tokens."""
    heads, rows = head.stop - head.start, row.stop - row.start
    return buffer[: heads * rows * tokens].view(heads, rows, tokens)


def exponentials(logits: Tensor) -> Tensor:
    """Turn logits into softmax weights that are not normalised yet, in place; return the sums of the rows.

    Torch's softmax takes longer than these calls, and the division can wait for the attended values, which are fewer.
    Like plain attention, that asks for values below the greatest number of the dtype by a factor of the tokens.
    """
    logits.sub_(logits.amax(dim=-1, keepdim=True)).exp_()
    return logits.sum(dim=-1, keepdim=True)


def softmax_backward(gradient: Tensor, weights: Tensor, incoming: Tensor, attended: Tensor) -> None:
    """Turn the gradient of the weights into that of their logits, in place.

    The product of weights and their gradients over a row is that of what the row attended to and of its gradient.
    """
    inner = (incoming * attended).sum(dim=-1, keepdim=True)
    gradient.sub_(inner.view(*gradient.shape[:-1], 1)).mul_(weights)


def modulation_backward(
    delta: Tensor, logits: Tensor, extrema: tuple[Tensor, Tensor], modulation: Modulation, scratch: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn the gradient of modulated logits into that of the logits, in place; return those of the strengths per head.

    Args:
        delta: gradient of the modulated logits, (..., heads rows tokens).
        logits: logits before the modulation, of the same shape.
        extrema: maximum and minimum of every row.
        modulation: slopes and constants.
        scratch: room of the same shape, overwritten.
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
    """Add the gradient of the extremum of each row to that of the logits which reach it, evenly where several do."""
    reached = torch.eq(logits, extremum, out=scratch)
    delta.addcmul_(reached, gradient / reached.sum(dim=-1, keepdim=True))
