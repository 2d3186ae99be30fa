"""Tiled attention of short sequences: one tile holds the logits of all heads of one or several samples.

The number of calls limits the speed of short sequences. Therefore no row is moved and no sample is treated alone: every
pair of tokens has a slope, every pair of a foreground row and a background column also has the constant of its row, and
a few calls modulate the whole tile.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32
from stmi_layers.kernels import tiles
from stmi_layers.kernels.sides import sides_of

# Largest part of a tile that samples share. More samples would need copies of their queries, keys and values, which a
# single sample does not need.
SHARED = 1 / 16


def is_short(query: Tensor) -> bool:
    """Tell whether the logits of a sample fit into a tile."""
    _, heads, tokens, _ = query.shape
    return heads * tokens**2 <= tiles.TILE


class Pairs:
    """Closed form of the modulation for all pairs of tokens of a batch, for logits before the scale."""

    def __init__(self, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float) -> None:
        """Store the slopes; `alpha` and `beta` hold one strength for all heads or one strength per head."""
        self.sides = sides_of(foreground, alpha.dtype)
        one = len(alpha) == len(beta) == 1  # a number saves calls
        strengths = ((of.item() if one else of[:, None, None]) for of in (alpha, beta))
        self.alpha, self.beta = (scale * strength for strength in strengths)
        self.least = scale * (1 - beta[:, None, None])  # slope of all pairs but foreground pairs

    def of(self, part: slice) -> tiles.Modulation:
        """Return the modulation of a slice of samples."""
        rows, outward = (side[part] for side in self.sides)
        slope = torch.addcmul(self.least, rows * (self.beta - self.alpha), rows.mT)
        return tiles.Modulation(self.alpha, self.beta, slope, outward, rows)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    foreground: Tensor,
    alpha: Tensor,
    beta: Tensor,
    scale: float,
    normaliser: Tensor | None = None,
) -> Tensor:
    """Return the attended values, tokens before heads; `alpha` and `beta` hold one strength for all heads or per head.

    The log-sum-exp of every row is written into `normaliser`, (batch heads tokens), unless it is None.
    """
    batch, heads, tokens, head_dim = query.shape
    result = value.new_empty(batch, tokens, heads, head_dim)
    pairs = Pairs(foreground, alpha, beta, scale)
    for part, (logits,) in _parts(query, alpha.dtype, buffers=1):
        log_sums = None if normaliser is None else normaliser[part]
        rows, keys, values = (_flat(tensor[part]) for tensor in (query, key, value))
        _attend_some(rows, keys, values, pairs.of(part), logits, log_sums, out=result[part].transpose(1, 2))
    return result


def _attend_some(
    rows: Tensor,
    keys: Tensor,
    values: Tensor,
    modulation: tiles.Modulation,
    logits: Tensor,
    log_sums: Tensor | None,
    *,
    out: Tensor,
) -> None:
    """Attend for the samples of a tile. A function frees its memory before the next tile is computed."""
    tile = torch.bmm(rows, keys.mT, out=logits.flatten(0, 1))
    modulation.apply(logits, logits.amax(dim=-1, keepdim=True), logits.amin(dim=-1, keepdim=True), out=logits)
    greatest = logits.amax(dim=-1, keepdim=True)
    sums = logits.sub_(greatest).exp_().sum(dim=-1, keepdim=True)
    _put_product(out, tile, values, sums)
    if log_sums is not None:
        log_sums.copy_(greatest.add_(sums.log_())[..., 0])


def differentiate(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    foreground: Tensor,
    alpha: Tensor,
    beta: Tensor,
    result: Tensor,
    normaliser: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of query, key and value, and of both strengths per head."""
    batch, heads, tokens, _ = query.shape
    to = [of.new_empty(batch, tokens, heads, of.shape[-1]).transpose(1, 2) for of in (query, key, value)]
    to_alpha, to_beta = alpha.new_zeros(heads), alpha.new_zeros(heads)
    pairs = Pairs(foreground, alpha, beta, scale)
    for part, (logits, weights, delta) in _parts(query, alpha.dtype, buffers=3):
        rows, keys, values, incoming = (_flat(tensor[part]) for tensor in (query, key, value, gradient))
        modulation = pairs.of(part)
        torch.bmm(rows, keys.mT, out=logits.flatten(0, 1))
        extrema = logits.amax(dim=-1, keepdim=True), logits.amin(dim=-1, keepdim=True)
        modulation.apply(logits, *extrema, out=weights).sub_(normaliser[part, ..., None]).exp_()
        _put_product(to[2][part], weights.flatten(0, 1).mT, incoming)
        of_logits = torch.bmm(incoming, values.mT, out=delta.flatten(0, 1))
        tiles.softmax_backward(delta, weights, incoming, _flat(result[part]))
        of_strengths = tiles.modulation_backward(delta, logits, extrema, modulation, scratch=weights)
        to_alpha += of_strengths[0]
        to_beta += of_strengths[1]
        _put_product(to[0][part], of_logits, keys)
        _put_product(to[1][part], of_logits.mT, rows)
    to_query, to_key, to_value = to
    return to_query, to_key, to_value, scale * to_alpha, scale * to_beta


def _parts(query: Tensor, dtype: torch.dtype, buffers: int) -> Iterator[tuple[slice, list[Tensor]]]:
    """Yield slices of samples that share a tile, with their tiles, (samples heads tokens tokens)."""
    batch, heads, tokens, _ = query.shape
    most = min(batch, max(1, int(SHARED * tiles.TILE) // max(heads * tokens**2, 1)))
    room = [query.new_empty(most, heads, tokens, tokens, dtype=dtype) for _ in range(buffers)]
    for first in range(0, batch, max(most, 1)):
        part = slice(first, min(first + most, batch))
        yield part, [buffer[: part.stop - first] for buffer in room]


def _flat(tensor: Tensor) -> Tensor:
    """Return `tensor` with samples and heads as one axis, in at least float32."""
    return at_least_float32(tensor).flatten(0, 1)


def _put_product(target: Tensor, left: Tensor, right: Tensor, divisor: Tensor | None = None) -> None:
    """Write a matrix product into `target`, which has two axes for samples and heads, and any layout and precision.

    `divisor`, if given, holds one number per row of the target, by which the product is divided.
    """
    direct = len(target) == 1 and target.dtype is left.dtype
    product = torch.bmm(left, right, out=target[0]) if direct else torch.bmm(left, right)
    if divisor is not None:
        product.div_(divisor.flatten(0, 1))
    if not direct:
        target.copy_(product.unflatten(0, target.shape[:2]))
