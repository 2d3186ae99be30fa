"""Attention weights of a layer, recomputed from its inputs and parameters.

Fast implementations never store attention weights. A hook records the inputs of a layer, and the weights follow from
the equations: the softmax over `modulate_logits`, or over plain logits without a mask.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from stmi_layers._precision import at_least_float32
from stmi_layers.attention import SegmentationModulatedAttention, modulate_logits


class Heads(NamedTuple):
    """Weights and values of a self-attention, as [`heads_of`][stmi_layers.backbones.heads_of] returns them.

    Attributes:
        weights: attention weights, (batch heads tokens tokens), in at least float32.
        values: values, (batch heads tokens head_dim).
    """

    weights: Tensor
    values: Tensor


Call = tuple[tuple[Any, ...], dict[str, Any]]


@contextmanager
def recording(layers: list[nn.Module]) -> Iterator[list[list[Call]]]:
    """Record the arguments of every call of each layer inside a `with` block.

    Args:
        layers: modules to record, such as the result of [`attention_layers`][stmi_layers.backbones.attention_layers].

    Returns:
        One list of calls per layer, in the order of `layers`; it grows with each call. A call is a pair of positional
        and keyword arguments.

    Examples:
        >>> attention = SegmentationModulatedAttention(8, 2)
        >>> tokens, foreground = torch.randn(1, 3, 8), torch.tensor([[True, False, True]])
        >>> with recording([attention]) as calls:
        ...     output = attention(tokens, foreground)
        >>> heads_of(attention, calls[0][0]).weights.shape
        torch.Size([1, 2, 3, 3])
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
    """List the self-attentions of a backbone that `heads_of` supports, first block first.

    Supported are [`SegmentationModulatedAttention`][stmi_layers.attention.SegmentationModulatedAttention],
    `nn.MultiheadAttention` (the default blocks of open_clip) and the attention of timm's `VisionTransformer`, modulated
    or not.

    Args:
        backbone: any module.

    Returns:
        The attention modules; an empty list when `backbone` contains no supported attention.
    """
    return [layer for layer in backbone.modules() if _is_stacked(layer) or _is_timm(layer)]


def heads_of(layer: Any, call: Call) -> Heads:
    """Compute attention weights, in at least float32, and values of a recorded call of one of `attention_layers`.

    Record in evaluation mode, because in training the layer may perturb the mask of the call.

    Args:
        layer: one of the results of `attention_layers`.
        call: a call of this layer that [`recording`][stmi_layers.backbones.recording] recorded.

    Returns:
        Weights, whose rows sum to 1, and values.
    """
    tokens, foreground = call[0][0], _foreground(layer, call)
    if not getattr(layer, "batch_first", True):  # only nn.MultiheadAttention has batch_first=False
        tokens = tokens.transpose(0, 1)
    stacked = _is_stacked(layer)
    projected = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias) if stacked else layer.qkv(tokens)
    query, key, value = rearrange(
        projected, "batch tokens (three heads dim) -> three batch heads tokens dim", three=3, heads=layer.num_heads
    )
    if not stacked:
        query, key = layer.q_norm(query), layer.k_norm(key)
    logits = at_least_float32(query) @ at_least_float32(key).transpose(-2, -1) * query.shape[-1] ** -0.5
    if foreground is not None:
        logits = modulate_logits(logits, foreground, layer.alpha, layer.beta)
    return Heads(logits.softmax(dim=-1), value)


def _is_stacked(layer: nn.Module) -> bool:
    """Tell whether one matrix holds all three projections, as in our layer and the default blocks of open_clip."""
    return isinstance(layer, SegmentationModulatedAttention | nn.MultiheadAttention)


def _is_timm(layer: nn.Module) -> bool:
    """Tell whether a layer is the attention of timm's `VisionTransformer`, which has no rotary embeddings."""
    ancestors = {f"{kind.__module__}.{kind.__qualname__}" for kind in type(layer).__mro__}
    return "timm.layers.attention.Attention" in ancestors


def _foreground(layer: Any, call: Call) -> Tensor | None:
    """Return the foreground mask of a call: the second argument of our layer, or a keyword argument of backbones."""
    arguments, named = call
    if isinstance(layer, SegmentationModulatedAttention):
        return named.get("foreground", arguments[1] if len(arguments) > 1 else None)
    mask = named.get("foreground", named.get("attn_mask"))
    # The strengths are None in a block that modulate(layers=...) left out.
    return None if mask is None or mask.dtype != torch.bool or getattr(layer, "alpha", None) is None else mask
