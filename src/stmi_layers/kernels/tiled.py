r"""Modulated attention on CPU without a matrix of tokens x tokens; the twin of the dense form in `attention.py`.

One sample at a time, its queries sorted into foreground and background:

- A background query is plain attention at another temperature, since $\beta \min_j A$ is constant along its row:
  torch's own kernel does it, at the speed of plain attention.
- A foreground query needs the extrema of its logits before the softmax. Such rows are made in tiles that stay in the
  cache, modulated in closed form and used up before the next tile.

Half precision computes in float32, but bfloat16 weights meet bfloat16 values; there the tiles are faster than torch's
kernel, and take all rows.
"""

from typing import Any

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32
from stmi_layers.kernels import tiled_backward as tiled_backward  # registers the operator of the backward pass
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


def tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """What `modulated_attention` returns, for CPU tensors: one operator to autograd and to `torch.compile`."""
    return torch.ops.stmi_layers.tiled_attention(query, key, value, foreground, alpha, beta, scale)[0]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The attended values, and the log-sum-exp of the rows that went through plain attention."""
    batch, heads, tokens, head_dim = query.shape
    in_tiles_only = value.dtype in (torch.float16, torch.bfloat16)
    result = value.new_empty(batch, tokens, heads, head_dim)  # tokens first, as plain attention lays it out
    alpha, beta = per_head(alpha, query), per_head(beta, query)
    normaliser = alpha.new_zeros(batch, heads, tokens)
    buffer = new_buffer(alpha, tokens)
    for b, (order, split) in enumerate(foreground_first(foreground)):
        rows = take_rows(query[b], order)
        rows[split:].mul_(1 - beta[:, 0])
        keys, values = wide_rows(key[b]), wide_rows(value[b])
        tiled = tokens if in_tiles_only else split
        if tiled > 0:
            modulation = Modulation.of(foreground[b], alpha, beta)
            factor = value[b] if value.dtype is torch.bfloat16 else values
            scaled = (rows[:tiled] * scale).transpose(0, 1)
            attended = factor.new_empty(tiled, heads, head_dim)
            for head, row in tiles(heads, tokens, (0, split), (split, tiled)):
                tile = torch.bmm(scaled[head, row], keys[head].mT, out=tile_in(buffer, head, row, tokens))
                if row.start < split:
                    modulation.apply(tile, tile.amax(dim=-1, keepdim=True), tile.amin(dim=-1, keepdim=True), head)
                torch.softmax(tile, dim=-1, out=tile)
                attended[row, head] = torch.bmm(tile.to(factor.dtype), factor[head]).transpose(0, 1)
            result[b].index_copy_(0, order[:tiled], attended.to(value.dtype))
        if tiled < tokens:
            rest = order[tiled:]
            attended, of_rows = _plain(rows[tiled:].transpose(0, 1)[None], keys[None], values[None], scale=scale)
            result[b].index_copy_(0, rest, attended[0].transpose(0, 1))
            normaliser[b].index_copy_(1, rest, of_rows[0])
    return result.transpose(1, 2), normaliser


def _shapes(query: Tensor, key: Tensor, value: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    batch, heads, tokens, head_dim = query.shape
    result = value.new_empty(batch, tokens, heads, head_dim).transpose(1, 2)
    return result, at_least_float32(value).new_empty(batch, heads, tokens)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, gradient: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if gradient is None:
        return (None,) * 7
    saved = ctx.saved_tensors
    of_query, of_key, of_value, of_alpha, of_beta = torch.ops.stmi_layers.tiled_attention_backward(
        gradient, *saved, ctx.scale
    )
    alpha, beta = saved[4:6]
    of_alpha, of_beta = of_alpha.sum_to_size(alpha.shape), of_beta.sum_to_size(beta.shape)
    return of_query, of_key, of_value, None, of_alpha.to(alpha.dtype), of_beta.to(beta.dtype), None


# Not `torch.library.custom_op`: its first call imports the compiler, which takes seconds.
_NAME = "stmi_layers::tiled_attention"
torch.library.define(_NAME, torch.library.infer_schema(_attend, mutates_args=()))
torch.library.impl(_NAME, "cpu", _attend)
torch.library.register_fake(_NAME, _shapes)
torch.library.register_autograd(_NAME, _gradients, setup_context=_save)
