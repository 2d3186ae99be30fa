r"""Backward pass of tiled attention: the tiles are recomputed instead of stored.

Let $A$ be the logits of a foreground row and $\Delta$ the gradient of its modulated logits. The sum of $\Delta$ over
the background columns is the gradient of their constant. The sums of $\Delta \circ A$ over foreground columns and over
background columns are the gradients of the two slopes. The gradient of $A$ is $\Delta$ times the slopes; maximum and
minimum also get the gradient of the constant, evenly split between ties.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32
from stmi_layers.kernels import tiled_short, tiles
from stmi_layers.kernels.refuse import refuse_second_derivative
from stmi_layers.kernels.tiles import (
    Piece,
    modulation_backward,
    new_buffer,
    pieces,
    put_rows,
    softmax_backward,
    take_rows,
    tile_in,
    wide_rows,
)

_plain_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class _Vectors(NamedTuple):
    """Vectors of a piece, or their gradients."""

    rows: Tensor  # (tokens heads head_dim): queries times the factor of the piece, in the order of the piece
    keys: Tensor  # (heads tokens head_dim)
    values: Tensor  # (heads tokens head_dim)


def _differentiate(
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
    alpha, beta = alpha.to(normaliser.dtype), beta.to(normaliser.dtype)
    if tiled_short.is_short(query):
        saved = foreground, alpha, beta, result, normaliser, scale
        return tiled_short.differentiate(gradient, query, key, value, *saved)
    batch, heads, tokens, head_dim = query.shape
    of_query = query.new_empty(batch, tokens, heads, head_dim)
    of_key, of_value = (of.new_empty(batch, tokens, heads, head_dim).transpose(1, 2) for of in (key, value))
    of_alpha, of_beta = normaliser.new_zeros(heads), normaliser.new_zeros(heads)
    for piece in pieces(query, foreground, alpha, beta, scale, most=tiles.TILE):
        of, split = (piece.sample, piece.heads), piece.split
        rows, incoming = take_rows(query[of], piece.order), take_rows(gradient[of], piece.order)
        attended = take_rows(result[of], piece.order)
        vectors = _Vectors(rows * piece.factor, wide_rows(key[of]), wide_rows(value[of]))
        to = _Vectors(*(torch.zeros_like(tensor) for tensor in vectors))
        if split < tokens:
            _add_background(to, vectors, incoming[split:], attended[split:], normaliser[of][:, split:])
            # The factor of a background row falls with beta.
            of_beta[piece.heads] -= scale * (rows[split:] * to.rows[split:]).sum(dim=0).sum(dim=1)
        if split > 0:
            to_alpha, to_beta = _add_foreground(to, vectors, incoming[:split], attended[:split], piece)
            of_alpha[piece.heads] += to_alpha
            of_beta[piece.heads] += to_beta
        put_rows(of_query[piece.sample, :, piece.heads], to.rows.mul_(piece.factor), piece.place)
        of_key[of], of_value[of] = to.keys, to.values
    return of_query.transpose(1, 2), of_key, of_value, of_alpha, of_beta


def _shapes(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, ...]:
    batch, heads, tokens, head_dim = query.shape
    # Tokens first, which is the layout of plain attention.
    of_query, of_key, of_value = (
        of.new_empty(batch, tokens, heads, head_dim).transpose(1, 2) for of in (query, key, value)
    )
    of_alpha, of_beta = (at_least_float32(query).new_empty(heads) for _ in range(2))
    return of_query, of_key, of_value, of_alpha, of_beta


_NAME = "stmi_layers::tiled_attention_backward"
torch.library.define(_NAME, torch.library.infer_schema(_differentiate, mutates_args=()))
torch.library.impl(_NAME, "cpu", _differentiate)
torch.library.register_fake(_NAME, _shapes)
torch.library.register_autograd(_NAME, refuse_second_derivative("tiled"))


def _add_background(to: _Vectors, vectors: _Vectors, incoming: Tensor, attended: Tensor, normaliser: Tensor) -> None:
    """Add the gradients of the background rows, which use plain attention; `incoming` belongs to these rows."""
    split = len(to.rows) - len(incoming)
    query, gradient, result = (rows.transpose(0, 1)[None] for rows in (vectors.rows[split:], incoming, attended))
    to_rows, to_keys, to_values = _plain_backward(
        gradient, query, vectors.keys[None], vectors.values[None], result, normaliser[None], 0.0, False, scale=1.0
    )
    to.rows[split:] = to_rows[0].transpose(0, 1)
    to.keys.add_(to_keys[0])
    to.values.add_(to_values[0])


def _add_foreground(
    to: _Vectors, vectors: _Vectors, incoming: Tensor, attended: Tensor, piece: Piece
) -> tuple[Tensor, Tensor]:
    """Add the gradients of the foreground rows; return the gradients of both strengths from these rows, per head."""
    _, keys, values = vectors
    heads, tokens, _ = keys.shape
    of_alpha, of_beta = keys.new_zeros(heads), keys.new_zeros(heads)
    buffers = [new_buffer(incoming, tokens) for _ in range(3)]
    for head, row in tiles.cut(heads, len(incoming), tokens):
        rows, gradient, found, to_rows = (
            of[row, head].transpose(0, 1) for of in (vectors.rows, incoming, attended, to.rows)
        )
        modulation = piece.modulation(head)
        logits, weights, delta = (tile_in(buffer, head, row, tokens) for buffer in buffers)
        torch.bmm(rows, keys[head].mT, out=logits)
        maximum, minimum = logits.amax(dim=-1, keepdim=True), logits.amin(dim=-1, keepdim=True)
        modulation.apply(logits, maximum, minimum, out=weights)
        weights.div_(tiles.exponentials(weights))
        to.values[head].baddbmm_(weights.mT, gradient)
        torch.bmm(gradient, values[head].mT, out=delta)
        softmax_backward(delta, weights, gradient, found)
        to_strengths = modulation_backward(delta, logits, (maximum, minimum), modulation, scratch=weights)
        of_alpha[head] += to_strengths[0]
        of_beta[head] += to_strengths[1]
        to_rows.copy_(torch.bmm(delta, keys[head]))
        to.keys[head].baddbmm_(delta.mT, rows)
    return of_alpha, of_beta
