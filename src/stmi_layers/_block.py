"""Pre-norm transformer block that several layers share; no token attends to a token that is left out."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stmi_layers._precision import layer_norm


def self_attention(
    tokens: Tensor,
    in_proj_weight: Tensor,
    project: Callable[[Tensor], Tensor],
    num_heads: int,
    keep: Tensor | None,
) -> Tensor:
    """Attend with several heads among the tokens that `keep` (batch tokens) marks True; all other rows become zero.

    `project` maps the concatenated heads. A layer passes its `out_proj` as a module, so that hooks, adapters and
    quantised modules take effect.
    """
    packed = F.linear(tokens, in_proj_weight)
    query, key, value = rearrange(packed, "b t (part h d) -> part b h t d", part=3, h=num_heads).unbind(0)
    read = F.scaled_dot_product_attention(query, key, value, None if keep is None else _mask(keep, query))
    output = project(rearrange(read, "b h t d -> b t (h d)"))
    return output if keep is None else torch.where(keep[..., None], output, 0.0)


def _mask(keep: Tensor, query: Tensor) -> Tensor:
    """Return the bias of the logits. The bias is finite, because a row of nothing but -inf is NaN on some runtimes."""
    nothing = torch.zeros_like(keep, dtype=query.dtype)
    return nothing.masked_fill(~keep, torch.finfo(query.dtype).min / 2)[:, None, None, :]


class Block(nn.Module):
    r"""Attention block: $x \leftarrow x + \operatorname{Attn}(N_1(x))$, $x \leftarrow x + \operatorname{FFN}(N_2(x))$.

    The projection to query, key and value has no bias; `bias=True` gives a bias to the other three linear maps.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        *,
        bias: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        factory = {"device": device, "dtype": dtype}
        self.norm_attention = nn.LayerNorm(dim, **factory)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim, **factory))
        self.out_proj = nn.Linear(dim, dim, bias=bias, **factory)
        self.norm_ffn = nn.LayerNorm(dim, **factory)
        linear = nn.Linear(dim, hidden, bias=bias, **factory), nn.Linear(hidden, dim, bias=bias, **factory)
        self.ffn = nn.Sequential(linear[0], nn.GELU(), linear[1])
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the initial values: those of `nn.LayerNorm` and `nn.Linear`."""
        bound = self.in_proj_weight.shape[1] ** -0.5  # the bound of nn.Linear
        nn.init.uniform_(self.in_proj_weight, -bound, bound)
        for layer in self.modules():
            if isinstance(layer, nn.LayerNorm | nn.Linear):
                layer.reset_parameters()

    def forward(self, tokens: Tensor, keep: Tensor | None = None) -> Tensor:
        """Return tokens of the same shape; the values of tokens that are not kept have no meaning."""
        normed = layer_norm(self.norm_attention, tokens)
        tokens = tokens + self_attention(normed, self.in_proj_weight, self.out_proj, self.num_heads, keep)
        return tokens + self.ffn(layer_norm(self.norm_ffn, tokens))
