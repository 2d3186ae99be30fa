r"""Modulated attention on CPU without a matrix of tokens x tokens; its readable reference is `dense.py`.

The code works on some heads of one sample at a time, whose queries are sorted into foreground and background:

- A background query is plain attention at another temperature, because $\beta \min_j A$ is constant along its row.
  Torch's own kernel computes it, at the speed of plain attention.
- A foreground query needs the extrema of its logits before the softmax. Such rows are computed in tiles that stay in
  the cache, are modulated in closed form, and are used before the next tile is computed.

If the logits of a whole sample fit into one tile, `tiled_short.py` takes over. Half precision is computed in float32,
except for bfloat16 in longer sequences on a processor with bfloat16 products, where `merged.py` takes over.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from stmi_layers._precision import at_least_float32
from stmi_layers.kernels import merged, tiled_short, tiles
from stmi_layers.kernels import tiled_backward as tiled_backward  # registers the operator of the backward pass
from stmi_layers.kernels.flops import tell_counters
from stmi_layers.kernels.tiles import Piece, exponentials, new_buffer, pieces, put_rows, take_rows, tile_in, wide_rows

_plain = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def tiled_attention(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """Compute `modulated_attention` for CPU tensors: one operator to autograd and to `torch.compile`."""
    if _is_watched(query, key, value, alpha, beta):
        tell_counters("tiled_attention")
        return torch.ops.stmi_layers.tiled_attention(query, key, value, foreground, alpha, beta, scale)[0]
    if not tiled_short.is_short(query):
        return _attend(query, key, value, foreground, alpha, beta, scale)[0]
    alpha, beta = _wide(alpha, query), _wide(beta, query)
    return tiled_short.attend(query, key, value, foreground, alpha, beta, scale).transpose(1, 2)


def _is_watched(*tensors: Tensor) -> bool:
    """Tell whether autograd, a captured graph, or a mode or subclass of torch needs to see the operator.

    Otherwise the operator is not called, because its call costs a third of the attention of one image.
    """
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or any(type(tensor) not in (Tensor, Parameter) for tensor in tensors)
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
    )


def _wide(strength: Tensor, like: Tensor) -> Tensor:
    """Return a strength in the precision of logits."""
    return strength if strength.dtype is like.dtype is torch.float32 else strength.to(at_least_float32(like[:0]).dtype)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Return the attended values, and the log-sum-exp of all rows, or only of the rows that use plain attention."""
    batch, heads, tokens, head_dim = query.shape
    alpha, beta = _wide(alpha, query), _wide(beta, query)
    normaliser = alpha.new_zeros(batch, heads, tokens)
    if tiled_short.is_short(query):
        result = tiled_short.attend(query, key, value, foreground, alpha, beta, scale, normaliser)
        return result.transpose(1, 2), normaliser
    if merged.is_fast(query):
        result = merged.attend(query, key, value, foreground, alpha, beta, scale, normaliser)
        return result.transpose(1, 2), normaliser
    result = value.new_empty(batch, tokens, heads, head_dim)  # tokens first, as plain attention lays it out
    # About two tiles of memory; half precision needs float32 copies of its rows, keys, values and results.
    copies = 1 if result.dtype is normaliser.dtype else 4
    for piece in pieces(query, foreground, alpha, beta, scale, most=2 * tiles.TILE // copies):
        of, split = (piece.sample, piece.heads), piece.split
        target = result[piece.sample, :, piece.heads]
        rows = take_rows(query[of], piece.order)
        # In float32 and float64 the rows are stored in the memory of their results.
        rows = torch.mul(rows, piece.factor, out=target if target.dtype is rows.dtype else rows)
        keys, values = wide_rows(key[of]), wide_rows(value[of])
        if split > 0:
            _attend_foreground(rows[:split], keys, values, piece)
        if split < tokens:
            normaliser[of][:, split:] = _attend_background(rows[split:], keys, values)
        put_rows(target, rows, piece.place)
    return result.transpose(1, 2), normaliser


def _attend_foreground(rows: Tensor, keys: Tensor, values: Tensor, piece: Piece) -> None:
    """Write the result of each row over the row itself, which is not read any more."""
    tokens = keys.shape[1]
    buffer = new_buffer(rows, tokens)
    for head, row in tiles.cut(len(keys), len(rows), tokens):
        of_rows, modulation = rows[row, head].transpose(0, 1), piece.modulation(head)
        tile = torch.bmm(of_rows, keys[head].mT, out=tile_in(buffer, head, row, tokens))
        modulation.apply(tile, tile.amax(dim=-1, keepdim=True), tile.amin(dim=-1, keepdim=True), out=tile)
        sums = exponentials(tile)
        torch.div(torch.bmm(tile, values[head]), sums, out=of_rows)


def _attend_background(rows: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Write the result of each row over the row, by plain attention; return the log-sum-exps, (heads rows)."""
    of_rows = rows.transpose(0, 1)
    attended, normaliser = _plain(of_rows[None], keys[None], values[None], scale=1.0)
    of_rows.copy_(attended[0])
    return normaliser[0]


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
