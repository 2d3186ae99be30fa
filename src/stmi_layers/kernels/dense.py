"""Modulated attention in closed form over all logits: the readable implementation, which supports every transform."""

import torch
from torch import Tensor

from stmi_layers._precision import at_least_float32


def dense_attention(
    query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor, scale: float
) -> Tensor:
    """Compute `modulated_attention`."""
    # Scaling the query first keeps half-precision inputs with large norms inside the range of the logits.
    logits = (at_least_float32(query) * scale) @ at_least_float32(key).transpose(-2, -1)
    weights = closed_form(logits, foreground, alpha, beta).softmax(dim=-1)
    return weights.to(value.dtype) @ value


def closed_form(logits: Tensor, foreground: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Compute `modulate_logits` by a slope for every pair, and a constant for background columns of foreground rows."""
    alpha, beta = (strength.to(logits.dtype)[:, None, None] for strength in (alpha, beta))
    row, column = foreground[:, None, :, None], foreground[:, None, None, :]
    slope = 1 - torch.where(row & column, alpha, beta)
    constant = beta * logits.amin(dim=-1, keepdim=True) - alpha * logits.amax(dim=-1, keepdim=True)
    return torch.addcmul(torch.where(row & ~column, constant, 0.0), logits, slope)
