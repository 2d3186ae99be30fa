r"""The backward pass of tiled attention: the tiles are made again instead of being stored.

Let $\Delta$ be the gradient of the modulated logits of the foreground rows, $\Delta = P \circ (G V^\top - \delta)$ with
the weights $P$, the incoming gradient $G$ and $\delta$ its product with the output, row by row. Then

- the slopes are constant per key, so they scale keys, and the gradient of keys, instead of tiles;
- $\sum_i \Delta_{ij} A_{ij} = k_j \cdot (\Delta^\top Q)_j$, summed over foreground keys and over background keys, gives
  the share of the slopes in the gradients of $\alpha$ and $\beta$ without the logits;
- the constant on background columns reaches the logits at the positions of maximum and minimum (one of them where
  several tie): a row of keys and of queries each, not a tile.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32
from stmi_layers.kernels.tiles import (
    Modulation,
    foreground_first,
    new_buffer,
    per_head,
    take_rows,
    tile_in,
    tiles,
    wide_rows,
)

_plain = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_plain_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


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
    """Gradients of query, key and value, and of both strengths per head."""
    batch, heads, tokens, head_dim = query.shape
    alpha, beta = per_head(alpha, query), per_head(beta, query)
    of_query = query.new_empty(batch, tokens, heads, head_dim)
    of_key, of_value = (key.new_empty(batch, heads, tokens, head_dim) for _ in range(2))
    of_alpha, of_beta = alpha.new_zeros(heads), alpha.new_zeros(heads)
    buffers = new_buffer(alpha, tokens), new_buffer(alpha, tokens)
    for b, (order, split) in enumerate(foreground_first(foreground)):
        rows, incoming, attended = (take_rows(tensor[b], order) for tensor in (query, gradient, result))
        keys, values = wide_rows(key[b]), wide_rows(value[b])
        if split < tokens:
            damping = 1 - beta[:, 0]
            damped = rows[split:] * damping
            # Rows that went through tiles have left no normaliser.
            of_rows = None if _is_half(result) else (attended[split:], normaliser[b].index_select(1, order[split:]))
            to_rows, to_keys, to_values = _background_rows(damped, incoming[split:], of_rows, keys, values, scale)
            of_beta -= (rows[split:] * to_rows).sum(dim=(0, 2))
            of_query[b].index_copy_(0, order[split:], (to_rows * damping).to(query.dtype))
        else:
            to_keys, to_values = torch.zeros_like(keys), torch.zeros_like(values)
        if split > 0:
            modulation = Modulation.of(foreground[b], alpha, beta)
            scaled = rows[:split] * scale
            to_rows, to_alpha, to_beta = _foreground_rows(
                scaled, incoming[:split], attended[:split], keys, values, modulation, buffers, to_keys, to_values
            )
            of_query[b].index_copy_(0, order[:split], (to_rows * scale).to(query.dtype))
            of_alpha += to_alpha
            of_beta += to_beta
        of_key[b], of_value[b] = to_keys, to_values
    return of_query.transpose(1, 2), of_key, of_value, of_alpha, of_beta


def _shapes(gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, ...]:
    batch, heads, tokens, head_dim = query.shape
    of_query = query.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
    of_key, of_value = (of.new_empty(batch, heads, tokens, head_dim) for of in (key, value))
    of_alpha, of_beta = (at_least_float32(query).new_empty(heads) for _ in range(2))
    return of_query, of_key, of_value, of_alpha, of_beta


def _refuse_second_derivative(*_: object) -> None:
    raise NotImplementedError(
        'tiled attention has no second derivative: call modulated_attention with implementation="dense"'
    )


_NAME = "stmi_layers::tiled_attention_backward"
torch.library.define(_NAME, torch.library.infer_schema(_differentiate, mutates_args=()))
torch.library.impl(_NAME, "cpu", _differentiate)
torch.library.register_fake(_NAME, _shapes)
torch.library.register_autograd(_NAME, _refuse_second_derivative)


def _is_half(tensor: Tensor) -> bool:
    return tensor.dtype in (torch.float16, torch.bfloat16)


def _background_rows(
    damped: Tensor, incoming: Tensor, of_rows: tuple[Tensor, Tensor] | None, keys: Tensor, values: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Plain attention's gradients of its queries, tokens first, and of keys and values, heads first."""
    query, key, value, gradient = damped.transpose(0, 1)[None], keys[None], values[None], incoming.transpose(0, 1)[None]
    if of_rows is None:
        result, normaliser = _plain(query, key, value, scale=scale)
    else:
        result, normaliser = of_rows[0].transpose(0, 1)[None], of_rows[1][None]
    to_rows, to_keys, to_values = _plain_backward(
        gradient, query, key, value, result, normaliser, 0.0, False, scale=scale
    )
    return to_rows[0].transpose(0, 1), to_keys[0], to_values[0]


def _foreground_rows(
    rows: Tensor,
    incoming: Tensor,
    attended: Tensor,
    keys: Tensor,
    values: Tensor,
    modulation: Modulation,
    buffers: tuple[Tensor, Tensor],
    to_keys: Tensor,
    to_values: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add to the gradients of keys and values; return those of the scaled queries, tokens first, and the strengths."""
    heads, tokens, head_dim = keys.shape
    alpha, beta, slope, background = modulation
    delta_sums = (incoming * attended).sum(dim=-1).T[..., None]
    rows, incoming = rows.transpose(0, 1), incoming.transpose(0, 1)
    sloped_keys = keys * slope.mT
    to_rows, by_slope = torch.empty_like(rows), torch.zeros_like(keys)
    of_alpha, of_beta = alpha.new_zeros(heads), alpha.new_zeros(heads)
    for head, row in tiles(heads, tokens, (0, rows.shape[1])):
        of_rows, gradient = rows[head, row], incoming[head, row]
        weights = torch.bmm(of_rows, keys[head].mT, out=tile_in(buffers[0], head, row, tokens))
        maximum, at_maximum = _extremum(weights, torch.amax, torch.argmax)
        minimum, at_minimum = _extremum(weights, torch.amin, torch.argmin)
        modulation.apply(weights, maximum, minimum, head)
        torch.softmax(weights, dim=-1, out=weights)
        to_values[head].baddbmm_(weights.mT, gradient)
        delta = torch.bmm(gradient, values[head].mT, out=tile_in(buffers[1], head, row, tokens))
        delta.sub_(delta_sums[head, row]).mul_(weights)
        by_slope[head].baddbmm_(delta.mT, of_rows)
        to_rows[head, row] = torch.bmm(delta, sloped_keys[head])
        of_constant = (delta @ background)[..., None]
        for strength, of_strength, extremum, position, sign in (
            (alpha, of_alpha, maximum, at_maximum, -1),
            (beta, of_beta, minimum, at_minimum, 1),
        ):
            of_strength[head] += sign * (of_constant * extremum).sum(dim=(1, 2))
            share = sign * strength[head] * of_constant
            where = position.expand(-1, -1, head_dim)
            to_rows[head, row] += share * keys[head].gather(1, where)
            to_keys[head].scatter_add_(1, where, share * of_rows)
    to_keys.addcmul_(by_slope, slope.mT)
    of_slope = (keys * by_slope).sum(dim=-1)
    return to_rows.transpose(0, 1), of_alpha - of_slope @ (1 - background), of_beta - of_slope @ background


def _extremum(logits: Tensor, reduce: Callable[..., Tensor], locate: Callable[..., Tensor]) -> tuple[Tensor, Tensor]:
    """Value and position of the extremum of each row.

    Locating costs ten times as much as reducing: so the row is folded into overlapping chunks, these are reduced onto
    one another, and only one chunk's width and then the few chunks at that place are searched.
    """
    tokens = logits.shape[-1]
    chunks = max(1, tokens // 64)
    step = tokens // chunks
    width = tokens - (chunks - 1) * step
    folded = logits.as_strided((*logits.shape[:-1], chunks, width), (*logits.stride()[:-1], step, 1))
    place = locate(reduce(folded, dim=-2), dim=-1, keepdim=True)
    candidates = place + step * torch.arange(chunks, device=logits.device)
    position = candidates.gather(-1, locate(logits.gather(-1, candidates), dim=-1, keepdim=True))
    return logits.gather(-1, position), position
