"""Attention of a few rows to many tokens, with one product instead of two for the gradient of the tokens.

The tokens are both keys and values, and their gradient is the largest tensor of the whole backward pass. Writing this
gradient once instead of three times (two terms and their sum) saves a quarter of the time. Gates of the tokens, which
are 1 where a token is read, get the gradient of a product with the tokens, although no product is computed.
"""

from typing import Any

import torch
from torch import Tensor


class ReadTokens(torch.autograd.Function):
    r"""Computes $\operatorname{softmax}(\text{rows}\,\text{tokens}^\top)\,\text{tokens}$ in float32 or float64.

    The readable reference is `_read` in `cross_attention.py`. It also runs instead of this function in half precision,
    under autocast, for tokens without a gradient and while a graph is captured.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        rows: Tensor, tokens: Tensor, keep: Tensor | None, gates: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the results of the rows, (batch rows dim), then weights and logits, (batch rows tokens)."""
        logits = rows @ tokens.transpose(1, 2)
        if keep is not None:
            logits = logits.masked_fill(~keep[:, None, :], torch.finfo(logits.dtype).min)
        weights = logits.softmax(dim=-1)
        return weights @ tokens, weights, logits

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        rows, tokens, keep, gates = inputs
        ctx.save_for_backward(rows, tokens, keep, gates, output[1], None if gates is None else output[2])

    @staticmethod
    def backward(
        ctx: Any, of_read: Tensor, of_weights: Tensor, of_logits: Tensor
    ) -> tuple[Tensor, Tensor, None, Tensor | None]:
        rows, tokens, keep, gates, weights, logits = ctx.saved_tensors
        of_values = of_read @ tokens.transpose(1, 2)
        of_weights = of_weights + of_values
        of_logits = of_logits + weights * (of_weights - (weights * of_weights).sum(dim=-1, keepdim=True))
        if keep is not None:
            of_logits = of_logits.masked_fill(~keep[:, None, :], 0.0)
        of_tokens = torch.cat([of_logits, weights], dim=1).transpose(1, 2) @ torch.cat([rows, of_read], dim=1)
        of_gates = None
        if gates is not None:  # the gradient of a token times the token, without the product
            of_gates = (of_logits * logits + weights * of_values).sum(dim=1).to(gates.dtype)
        return of_logits @ tokens, of_tokens, None, of_gates
