"""Attention weights of a tower, recomputed from what reached a layer and from its own parameters.

Fast layers never hold their weights. A hook records what went in, and the weights are those of the equations: the
softmax over `modulate_logits`, or over plain logits where there was no mask.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stmi_layers.attention import SegmentationModulatedAttention, modulate_logits


class Heads(NamedTuple):
    """Weights (batch heads tokens tokens) and values (batch heads tokens head_dim) of a self-attention."""

    weights: Tensor
    values: Tensor


Call = tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def recording(layers: list[nn.Module]) -> Iterator[list[list[Call]]]:
    """Record the arguments of every call of each layer, while the block lasts.

    Args:
        layers: those of `attention_layers`.

    Examples:
        >>> from stmi_layers import SegmentationModulatedAttention
        >>> layer, tokens = SegmentationModulatedAttention(8, num_heads=2), torch.randn(1, 5, 8)
        >>> with recording([layer]) as calls:
        ...     _ = layer(tokens, None)
        >>> attention_heads(layer, calls[0][0]).weights.shape
        torch.Size([1, 2, 5, 5])
    """
    calls: list[list[Call]] = [[] for _ in layers]

    def hook(into: list[Call]) -> Any:
        return lambda layer, arguments, named: into.append((arguments, named))

    handles = [
        layer.register_forward_pre_hook(hook(into), with_kwargs=True) for layer, into in zip(layers, calls, strict=True)
    ]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def attention_layers(backbone: nn.Module) -> list[nn.Module]:
    """Return the self-attentions of a tower, first block first, of the kinds that `attention_heads` knows."""
    return [layer for layer in backbone.modules() if _is_stacked(layer) or _is_timm(layer)]


def attention_heads(layer: Any, call: Call) -> Heads:
    """Compute weights and values of one call of one of `attention_layers`, the weights in at least float32."""
    tokens, foreground = call[0][0], _foreground(layer, call)
    if not getattr(layer, "batch_first", True):  # only nn.MultiheadAttention can be otherwise
        tokens = tokens.transpose(0, 1)
    stacked = _is_stacked(layer)
    projected = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias) if stacked else layer.qkv(tokens)
    query, key, value = rearrange(
        projected, "batch tokens (three heads dim) -> three batch heads tokens dim", three=3, heads=layer.num_heads
    )
    if not stacked:
        query, key = layer.q_norm(query), layer.k_norm(key)
    query, key = (part.to(torch.promote_types(part.dtype, torch.float32)) for part in (query, key))
    logits = query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5
    if foreground is not None:
        logits = modulate_logits(logits, foreground, layer.alpha, layer.beta)
    return Heads(logits.softmax(dim=-1), value)


def _is_stacked(layer: nn.Module) -> bool:
    """Whether the three projections are one matrix, as in SFM and the default blocks of open_clip."""
    return isinstance(layer, SegmentationModulatedAttention | nn.MultiheadAttention)


def _is_timm(layer: nn.Module) -> bool:
    """Whether it is the attention of timm's `VisionTransformer`; rotary ones turn their queries by position."""
    ancestors = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(layer).__mro__}
    return "timm.layers.attention.Attention" in ancestors


def _foreground(layer: Any, call: Call) -> Tensor | None:
    """The mask of tokens that reached the layer: its second argument, or what backbones hand on by name."""
    arguments, named = call
    if isinstance(layer, SegmentationModulatedAttention):
        return named.get("foreground", arguments[1] if len(arguments) > 1 else None)
    mask = named.get("foreground", named.get("attn_mask"))
    # In a block that modulate(layers=...) left out, the strengths are None.
    return None if mask is None or mask.dtype != torch.bool or getattr(layer, "alpha", None) is None else mask
