r"""Modulated attention on CPU as plain attention over parts of the keys: long sequences in bfloat16, forward pass.

The code works on some heads of one sample at a time, whose tokens are sorted into foreground and background:

- A background row is plain attention at another temperature.
- A foreground row is two plain attentions, over the foreground keys and over the background keys. With their
  log-sum-exps $\ell_f$ and $\ell_b$ and the constant $c = \beta \min_j A - \alpha \max_j A$ of the row,
  $\sigma(\ell_b + c - \ell_f)$ is the weight of the result over the background. The extrema come from float32 logits,
  which are computed in tiles and discarded.

Torch's own kernel multiplies in bfloat16 and accumulates in float32. That is fast on a processor with bfloat16
instructions; on other processors, and for shorter sequences, `tiled.py` is faster.
"""

import functools

import torch
from torch import Tensor

from stmi_layers.kernels import tiles
from stmi_layers.kernels.tiles import Piece, pieces, tile_in

_plain = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def is_fast(query: Tensor) -> bool:
    """Tell whether the queries are in bfloat16 and this processor has instructions for its products."""
    return query.dtype is torch.bfloat16 and _multiplies_bfloat16()


@functools.cache
def _multiplies_bfloat16() -> bool:
    checks = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return any(check is not None and check() for check in checks)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    foreground: Tensor,
    alpha: Tensor,
    beta: Tensor,
    scale: float,
    normaliser: Tensor,
) -> Tensor:
    """Return the attended values, tokens before heads; `alpha` and `beta` hold one strength for all heads or per head.

    The log-sum-exps of the background rows are written into `normaliser`, (batch heads tokens), after unused entries
    for the foreground rows.
    """
    batch, heads, tokens, head_dim = query.shape
    result = value.new_empty(batch, tokens, heads, head_dim)
    buffer = normaliser.new_empty(max(tiles.TILE, tokens * max(16, torch.get_num_threads())))
    shared = len(alpha) == len(beta) == 1  # torch's kernel has one temperature for all heads
    for piece in pieces(query, foreground, alpha, beta, scale, most=tiles.TILE // 2 if shared else 1):
        of, split = (piece.sample, piece.heads), piece.split
        rows, keys, values = (tensor[of].index_select(1, piece.order) for tensor in (query, key, value))
        inner, outer = (scale * (1 - strength[0].item()) for strength in (piece.alpha, piece.beta))
        attended = torch.empty_like(rows)
        if split > 0:
            attended[:, :split] = _attend_foreground(rows[:, :split], keys, values, piece, inner, outer, scale, buffer)
        if split < tokens:
            attended[:, split:], normaliser[of][:, split:] = _attend(rows[:, split:], keys, values, outer)
        result[piece.sample, :, piece.heads] = attended.transpose(0, 1).index_select(0, piece.place)
    return result


def _attend(rows: Tensor, keys: Tensor, values: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return plain attention, (heads rows head_dim), and the log-sum-exp of its rows."""
    attended, normaliser = _plain(rows[None], keys[None], values[None], scale=scale)
    return attended[0], normaliser[0]


def _attend_foreground(
    rows: Tensor, keys: Tensor, values: Tensor, piece: Piece, inner: float, outer: float, scale: float, buffer: Tensor
) -> Tensor:
    split, tokens = piece.split, keys.shape[1]
    near, of_near = _attend(rows, keys[:, :split], values[:, :split], inner)
    if split == tokens:
        return near
    far, of_far = _attend(rows, keys[:, split:], values[:, split:], outer)
    share = (of_far - of_near).add_(_constants(rows, keys, piece, buffer), alpha=scale).sigmoid_()[..., None]
    return near.float().lerp_(far.float(), share)


def _constants(rows: Tensor, keys: Tensor, piece: Piece, buffer: Tensor) -> Tensor:
    """Return the constant of the background columns of every row, (heads rows), before the scale."""
    rows, keys = rows.float(), keys.float()
    (heads, count, _), tokens = rows.shape, keys.shape[1]
    constants = rows.new_empty(heads, count, 1)
    for head, row in tiles.cut(heads, count, tokens):
        tile = torch.bmm(rows[head, row], keys[head].mT, out=tile_in(buffer, head, row, tokens))
        least, greatest = tile.amin(dim=-1, keepdim=True), tile.amax(dim=-1, keepdim=True)
        constants[head, row] = piece.beta[head] * least - piece.alpha[head] * greatest
    return constants[..., 0]
