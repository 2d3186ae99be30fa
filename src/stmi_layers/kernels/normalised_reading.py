"""Several readers of the same tokens, with one product for the gradient of the tokens.

Every reader is a few rows that attend to the tokens: the keys are the tokens after a layer norm without parameters, and
the values are the tokens themselves. Plain operations write the gradient of the tokens, the largest tensor of the
backward pass, twice per reader and sum these gradients. Here each reader passes on two thin factors of its gradient,
and the gradient of the tokens is written once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from stmi_layers._precision import at_least_float32, without_autocast


def normalise(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Return normalised patches, in at least float32, and the factor by which each patch was scaled."""
    with without_autocast(patches):
        wide = at_least_float32(patches)
        keys, _, scale = torch.native_layer_norm(wide, wide.shape[-1:], None, None, 1e-5)
        return keys, scale


class ShareTokens(torch.autograd.Function):
    """Passes one slip per reader to `ReadNormalised`, and computes the gradient of the tokens from those of the slips.

    A slip has no value of its own. Its gradient, (... 2*rows+1 tokens+dim), holds the rows `[left, right]` of a product
    `left.T @ right`; its last row holds the factor of the key that the norm subtracts from the gradient of every token.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(tokens: Tensor, keys: Tensor, rows: int, readers: int) -> tuple[Tensor, ...]:
        """Return the slips of `readers` readers of `rows` rows each; `keys` are the normalised tokens."""
        *batch, count, dim = tokens.shape
        # A new tensor per reader, because outputs that share memory cannot be differentiated.
        return tuple(tokens.new_zeros(()).expand(*batch, 2 * rows + 1, count + dim) for _ in range(readers))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *of_slips: Tensor) -> tuple[Tensor, None, None, None]:
        (keys,) = ctx.saved_tensors
        left, right = torch.cat(of_slips, dim=-2).split([keys.shape[-2], keys.shape[-1]], dim=-1)
        of_norm = torch.stack([slip[..., -1, : keys.shape[-2]] for slip in of_slips]).sum(dim=0)
        of_tokens = left.transpose(-2, -1) @ right
        return torch.addcmul(of_tokens, keys, of_norm[..., None], value=-1), None, None, None


class ReadNormalised(torch.autograd.Function):
    r"""Computes $\operatorname{softmax}(\text{rows}\,\text{keys}^\top)\,\text{tokens}$ in float32 or float64.

    `keys` is the layer norm of the tokens, and `scale` the reciprocal standard deviation of every token. Both have no
    gradient of their own, because the gradient of `slip` includes it. Second derivatives are refused. The readable
    reference is `_read` in `token_permutation.py`.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        rows: Tensor, slip: Tensor, tokens: Tensor, keys: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the results of the rows, (... rows dim), the weights and the logits, (... rows tokens)."""
        logits = rows @ keys.transpose(-2, -1)
        weights = logits.softmax(dim=-1)
        return weights @ tokens, weights, logits

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        rows, _, *others = inputs
        ctx.save_for_backward(rows, *others, *output[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_read: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        rows, tokens, keys, scale, weights, logits = ctx.saved_tensors
        of_weights = of_read @ tokens.transpose(-2, -1)
        of_logits = weights * (of_weights - (weights * of_weights).sum(dim=-1, keepdim=True))
        scale = scale.transpose(-2, -1)
        of_norm = (of_logits * logits).sum(dim=-2, keepdim=True) * scale / tokens.shape[-1]
        left = torch.cat([of_logits * scale, weights, of_norm], dim=-2)
        centred = rows - rows.mean(dim=-1, keepdim=True)
        right = torch.cat([centred, of_read, torch.zeros_like(of_read[..., :1, :])], dim=-2)
        return of_logits @ keys, torch.cat([left, right], dim=-1), None, None, None
