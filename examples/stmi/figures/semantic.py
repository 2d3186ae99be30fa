"""Semantic tokens of STR: the patches that each token reads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from examples.figures.attention import Picture, rows_of, show_map
from examples.figures.style import show_absent
from examples.towers.tower import tower_tokens
from stmi_layers import CrossModalHypergraph, incidence_statistics
from stmi_layers.training import Batch


@dataclass(frozen=True)
class SemanticTokens:
    """Semantic tokens of some items.

    Attributes:
        grid: rows and columns of patches.
        weights: attention of the semantic tokens to the patches, (items modalities semantic patches), the mean over
            heads; NaN where a modality is absent.
        incidence: hyperedges of CHI, (items nodes edges); None in a model without CHI.
        statistics: for every item, mean edge size, share of isolated nodes and share of cross-modal edges.
    """

    grid: tuple[int, int]
    weights: Tensor
    incidence: Tensor | None
    statistics: list[tuple[float, float, float]]


@torch.no_grad()
def look_inside(model: Any, batch: Batch) -> SemanticTokens:
    """Run an STMI with STR in evaluation mode on a batch on the device of the model."""
    patches, _ = tower_tokens(model.backbone, batch)
    prior = None if model.text_encoder is None else model.text_encoder(batch.texts, batch.has_text)
    per_modality = zip(model.reallocations, patches.unbind(1), strict=True)
    weights = torch.stack([layer.attention(of_one, prior).mean(dim=1) for layer, of_one in per_modality], dim=1)
    if batch.present is not None:
        weights = weights.masked_fill(~batch.present[..., None, None], torch.nan)
    if not isinstance(model.interaction, CrossModalHypergraph):
        return SemanticTokens(model.backbone.grid, weights.cpu(), None, [])
    incidence = model.interaction.incidence(model.semantic_tokens(patches, prior), batch.present)
    statistics = incidence_statistics(incidence, batch.images.shape[1])
    rows = list(zip(*(value.tolist() for value in statistics), strict=True))
    return SemanticTokens(model.backbone.grid, weights.cpu(), incidence.cpu(), rows)


def draw_semantic(looks: SemanticTokens, shown: Sequence[Picture], modalities: Sequence[str], *, prior: bool) -> Figure:
    """Draw the patches that STR reads into every semantic token; with a text `prior` the last is the caption's."""
    count = looks.weights.shape[2]
    title = (
        "Attention of the semantic tokens of STR, mean over heads\nbelow each map: its maximum over that of an even map"
    )
    figure, rows = rows_of(shown, modalities, 1 + count, title)
    for place, (item, modality, axes) in enumerate(rows):
        for token, axis in enumerate(axes[1:]):
            if place == 0:
                axis.set_title("text" if prior and token == count - 1 else f"token {token + 1}", fontsize=8)
            if not shown[item].present[modality]:
                show_absent(axis, shown[item].masks.shape[1:])
                continue
            weights = looks.weights[item, modality, token]
            show_map(axis, shown[item], modality, weights, looks.grid, of_scale=[weights])
            axis.set_xlabel(f"{weights.max() * len(weights):.1f}", fontsize=7, labelpad=1)
    return figure
