"""Tiled attention of short sequences: the logits of one sample or several, over all of their heads, are one tile.

Here it is the calls that cost. So no row is moved and no sample treated on its own: every pair of tokens has a slope,
every pair of a foreground row and a background column the constant of its row, and a few calls modulate the whole tile.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32
from stmi_layers.kernels import tiles


def is_short(query: Tensor) -> bool:
    """Tell whether the logits of a sample fit into a tile."""
    _, heads, tokens, _ = query.shape
    return heads * tokens**2 <= tiles.TILE


class Pairs:
    """The closed form for all pairs of tokens of some samples, applied to logits that have no scale yet."""

    def __init__(self, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float) -> None:
        """`alpha` and `beta` hold one strength for all heads or one for each."""
        self.foreground, self.scale = foreground.to(alpha.dtype)[:, None, :, None], scale
        self.alpha, self.beta = (scale * strength[:, None, None] for strength in (alpha, beta))

    def of(self, part: slice) -> tuple[tiles.Modulation, Tensor]:
        """Return the modulation of a slice of samples, and a mask: 1 where row and column are in the foreground."""
        foreground = self.foreground[part]
        both = foreground * foreground.mT
        slope = (both * (self.beta - self.alpha)).add_(self.scale - self.beta)
        return tiles.Modulation(self.alpha, self.beta, slope, foreground - both), both


def attend(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """The attended values, tokens before heads; `alpha` and `beta` hold one strength for all heads or one for each."""
    batch, heads, tokens, head_dim = query.shape
    result = value.new_empty(batch, tokens, heads, head_dim)
    pairs = Pairs(foreground, alpha, beta, scale)
    for part, (logits,) in _parts(query, buffers=1):
        _attend_some(query[part], key[part], value[part], pairs.of(part)[0], logits, out=result[part].transpose(1, 2))
    return result


def _attend_some(
    query: Tensor, key: Tensor, value: Tensor, modulation: tiles.Modulation, logits: Tensor, *, out: Tensor
) -> None:
    """Attend for the samples of a tile. A function frees its memory before the next tile is computed."""
    tile = torch.bmm(_flat(query), _flat(key).mT, out=logits.flatten(0, 1))
    modulation.apply(logits, logits.amax(dim=-1, keepdim=True), logits.amin(dim=-1, keepdim=True), out=logits)
    sums = tiles.exponentials(logits)
    torch.div(torch.bmm(tile, _flat(value)).unflatten(0, out.shape[:2]), sums, out=out)


def differentiate(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    foreground: Tensor,
    alpha: Tensor,
    beta: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, and of both strengths per head."""
    batch, heads, tokens, head_dim = query.shape
    to_query = query.new_empty(batch, tokens, heads, head_dim)
    to_key, to_value = (of.new_empty(of.shape) for of in (key, value))
    to_alpha, to_beta = alpha.new_zeros(heads), alpha.new_zeros(heads)
    pairs = Pairs(foreground, alpha, beta, scale)
    for part, (logits, weights, delta) in _parts(query, buffers=3):
        rows, keys, values, incoming = (_flat(tensor[part]) for tensor in (query, key, value, gradient))
        modulation, both = pairs.of(part)
        torch.bmm(rows, keys.mT, out=logits.flatten(0, 1))
        maximum, minimum = logits.amax(dim=-1, keepdim=True), logits.amin(dim=-1, keepdim=True)
        modulation.apply(logits, maximum, minimum, out=weights)
        weights.div_(tiles.exponentials(weights))
        _put_product(to_value[part], weights.flatten(0, 1).mT, incoming)
        torch.bmm(incoming, values.mT, out=delta.flatten(0, 1))
        tiles.softmax_backward(delta, weights)
        of_strengths = tiles.modulation_backward(delta, logits, (maximum, minimum), modulation, both, scratch=weights)
        to_alpha += of_strengths[0]
        to_beta += of_strengths[1]
        of_logits = delta.flatten(0, 1)
        to_query[part] = torch.bmm(of_logits, keys).unflatten(0, (-1, heads)).transpose(1, 2)
        _put_product(to_key[part], of_logits.mT, rows)
    return to_query.transpose(1, 2), to_key, to_value, scale * to_alpha, scale * to_beta


def _parts(query: Tensor, buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """As many samples at once as fit into a tile, and tiles for them: samples heads tokens tokens."""
    batch, heads, tokens, _ = query.shape
    most = min(batch, max(1, tiles.TILE // max(heads * tokens**2, 1)))
    wide = at_least_float32(query[:0])
    room = [wide.new_empty(most, heads, tokens, tokens) for _ in range(buffers)]
    for first in range(0, batch, max(most, 1)):
        part = slice(first, min(first + most, batch))
        yield part, [buffer[: part.stop - first] for buffer in room]


def _flat(tensor: Tensor) -> Tensor:
    """Samples and heads as one axis, in at least float32."""
    return at_least_float32(tensor).flatten(0, 1)


def _put_product(target: Tensor, left: Tensor, right: Tensor) -> None:
    """Write the product of matrices to where samples and heads are two axes, dense, of any precision."""
    target = target.flatten(0, 1)
    if target.dtype is left.dtype:
        torch.bmm(left, right, out=target)
    else:
        target.copy_(torch.bmm(left, right))
