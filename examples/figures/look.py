"""Attention of the class token of a tower, with and without masks."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from examples.towers.tower import tower_tokens
from stmi_layers.backbones import attention_layers, heads_of, recording
from stmi_layers.training import Batch


@dataclass(frozen=True)
class ClassToken:
    """Attention of the class token to the patches.

    Attributes:
        grid: rows and columns of patches.
        weights: by whether masks were used, (items modalities blocks patches), the mean over heads; NaN where a
            modality is absent.
        strengths: alpha and beta of every block, the mean over heads; None in a block without SFM.
    """

    grid: tuple[int, int]
    weights: dict[bool, Tensor]
    strengths: list[tuple[float, float] | None]


@torch.no_grad()
def look(backbone: Any, batch: Batch) -> ClassToken | str:
    """Run a tower in evaluation mode with and without masks; return its attention, or the reason why it has none.

    Args:
        backbone: a `Backbone`.
        batch: batch on the device of the tower.
    """
    layers, reason = _layers(backbone)
    if reason is not None:
        return reason
    states = (False, True) if batch.masks is not None else (False,)
    weights = {state: _weights(backbone, batch if state else batch._replace(masks=None), layers) for state in states}
    return ClassToken(backbone.grid, weights, [_strengths(layer) for layer in layers])


def _layers(backbone: Any) -> tuple[list[Any], str | None]:
    """Return the self-attentions to draw, or [] and the reason."""
    tokens = getattr(backbone, "tokens", None)  # only a pretrained tower has them
    if tokens is not None and not tokens.tower.class_token:
        return [], "the backbone has no class token, its global token is pooled from the patches"
    every = [layer for layer in backbone.modules() if hasattr(layer, "alpha")]
    layers = attention_layers(backbone)
    if not every:
        return [], f"{type(backbone).__name__} has no self-attention with SFM"
    if len(layers) < len(every):
        kind = next(type(layer).__name__ for layer in every if layer not in layers)
        return [], f"the weights of {kind} cannot be told from its input: it does more than project and normalise"
    return layers, None


def _strengths(layer: Any) -> tuple[float, float] | None:
    return None if layer.alpha is None else (layer.alpha.mean().item(), layer.beta.mean().item())


def _weights(backbone: Any, batch: Batch, layers: list[nn.Module]) -> Tensor:
    """Return the attention of the first token to the patches, (items modalities blocks patches)."""
    with recording(layers) as calls:
        tower_tokens(backbone, batch)
    patches = backbone.grid[0] * backbone.grid[1]
    # One call per layer, on all images; the patches come after all other tokens.
    rows = [
        heads_of(layer, of_layer[0]).weights[:, :, 0, -patches:].mean(dim=1)
        for layer, of_layer in zip(layers, calls, strict=True)
    ]
    weights = torch.stack(rows, dim=1).unflatten(0, batch.images.shape[:2])
    if batch.present is not None:
        weights = weights.masked_fill(~batch.present[..., None, None], torch.nan)
    return weights.cpu()
