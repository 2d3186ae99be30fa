r"""Modulated attention as one plain attention over wider heads, by torch's own operators: the default on GPUs.

Let $m$ be the foreground and $c_i = m_i\,(\beta \min_j A_{ij} - \alpha \max_j A_{ij})$ the constant of a row. Then

$$\tilde q_i = \big[(1 - \beta)\, q_i,\; (\beta - \alpha)\, m_i q_i,\; c_i\big], \qquad
\tilde k_j = \big[k_j,\; m_j k_j,\; 1 - m_j\big]$$

have the modulated logits as their products (eq. 4-8 in closed form), which the vendor's fused kernel never stores. Half
precision rounds $c_i$; two further columns hold the rounding errors.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stmi_layers._precision import at_least_float32

# Rows whose extrema are searched at once, so that memory grows with the number of tokens, not with its square.
ROWS = 128


def widened_attention(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """Compute `modulated_attention`; where extrema of a row are tied, one of the tied keys gets the gradient."""
    width = query.shape[-1]
    of_row, of_column = foreground[:, None, :, None], foreground[:, None, :, None].to(key.dtype)
    # Scaling the query first keeps half-precision inputs with large norms inside the range of the logits.
    rows = at_least_float32(query) * scale
    alpha, beta = (strength.to(rows.dtype)[:, None, None] for strength in (alpha, beta))
    minimum, maximum = (_product_with(rows, key, place) for place in _extrema(query, key, scale))
    constant = torch.where(of_row, beta * minimum - alpha * maximum, 0.0)
    between = torch.where(of_row, (beta - alpha) * rows, 0.0)
    columns = [((1 - beta) * rows).to(query.dtype), between.to(query.dtype), *_in_parts(constant, query.dtype)]
    background = (1 - of_column).expand(-1, key.shape[1], -1, len(columns) - 2)
    room = -(2 * width + len(columns) - 2) % 8  # fused kernels need multiples of 8
    wide_query = F.pad(torch.cat(columns, dim=-1), (0, room))
    wide_key = F.pad(torch.cat([key, key * of_column, background], dim=-1), (0, room))
    wide_value = F.pad(value, (0, wide_key.shape[-1] - value.shape[-1]))
    return F.scaled_dot_product_attention(wide_query, wide_key, wide_value, scale=1.0)[..., : value.shape[-1]]


@torch.no_grad()
def _extrema(query: Tensor, key: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the indices of the keys at which every query has its smallest and its greatest logit."""
    # A power of two scales without rounding, and keeps logits of half precision in range.
    rows = query * 2.0 ** math.floor(math.log2(scale))
    half = query.dtype in (torch.float16, torch.bfloat16)
    shifted = F.pad(key, (0, 8), value=1.0) if half else key
    lowest, highest = [], []
    for part in rows.split(ROWS, dim=2):
        logits = part @ key.transpose(-2, -1)
        if half:  # near an extremum, differences from its rounded value separate keys that rounding made equal
            below, above = (_minus(part, value, shifted) for value in (logits.amin(-1, True), logits.amax(-1, True)))
        else:
            below = above = logits
        lowest.append(below.argmin(dim=-1))
        highest.append(above.argmax(dim=-1))
    return torch.cat(lowest, dim=2), torch.cat(highest, dim=2)


def _minus(rows: Tensor, value: Tensor, key: Tensor) -> Tensor:
    """Return logits minus one `value` per row; `key` has 1 in its last eight columns."""
    return F.pad(torch.cat([rows, -value], dim=-1), (0, 7)) @ key.transpose(-2, -1)


def _product_with(rows: Tensor, key: Tensor, place: Tensor) -> Tensor:
    """Return the logit of every row at one key, with its gradient."""
    chosen = key.gather(2, place[..., None].expand(-1, -1, -1, key.shape[-1]))
    return (rows * chosen).sum(dim=-1, keepdim=True)


def _in_parts(constant: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return numbers of `dtype` that sum to `constant`; each number is the rounding error of the sum before it."""
    parts, rest = [], constant
    for _ in range(1 if dtype is constant.dtype else 3):
        parts.append(rest.to(dtype))
        rest = (rest - parts[-1]).detach()  # one gradient for all columns: the first carries it
    return parts
