"""What a model does with some items: where its class tokens and semantic tokens look, and which hyperedges arise."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from examples.stmi.evaluate import Trained, patches_and_prior
from examples.stmi.model import SemanticFusion
from stmi_layers import CrossModalHypergraph, incidence_statistics
from stmi_layers.backbones import attention_layers, heads_of, recording
from stmi_layers.training.dataset import Batch, collate


@dataclass(frozen=True)
class Looks:
    """What is drawn of some items; a part is None where the model has none, and `left_out` says why.

    Attributes:
        grid: rows and columns of patches.
        class_token: attention of the class token to the patches, by whether the masks were on: (items modalities
            blocks patches), the mean over heads. NaN where a modality is absent.
        strengths: alpha and beta of every block, the mean over heads; None in a block without SFM.
        semantic: attention of the semantic tokens to the patches: (items modalities semantic patches), likewise.
        incidence: of CHI: (items nodes edges).
        statistics: of the incidence, for every item: mean edge size, share of isolated nodes and of cross-modal edges.
        left_out: which figures cannot be drawn, and why.
    """

    grid: tuple[int, int]
    class_token: dict[bool, Tensor] | None
    strengths: list[tuple[float, float] | None]
    semantic: Tensor | None
    incidence: Tensor | None
    statistics: list[tuple[float, float, float]]
    left_out: dict[str, str]


@torch.no_grad()
def look(trained: Trained, indices: list[int]) -> Looks:
    """Run the model on some items of the test split, with and without their masks."""
    model, left_out = trained.model, dict[str, str]()
    batch = collate([trained.dataset[index] for index in indices])
    layers, reason = _class_token_layers(model.backbone)
    if reason:
        left_out["attention"] = reason
    class_token = {} if layers else None
    if class_token is not None:
        for masked in (False, True) if batch.masks is not None else (False,):
            class_token[masked] = _class_token(trained, batch if masked else batch._replace(masks=None), layers)
    strengths = [_strengths(layer) for layer in layers]
    semantic, incidence = None, None
    if model.fusion is None:
        left_out |= dict.fromkeys(("tokens", "hyperedges"), "the model has no STR, hence no semantic tokens")
    else:
        semantic, incidence = _semantic(trained, model.fusion, batch)
        if incidence is None:
            left_out["hyperedges"] = f"the model has no CHI: its semantic tokens meet by {trained.settings.fusion!r}"
    statistics = [] if incidence is None else incidence_statistics(incidence, batch.images.shape[1])
    rows = list(zip(*(value.tolist() for value in statistics), strict=True))
    return Looks(model.backbone.grid, class_token, strengths, semantic, incidence, rows, left_out)


def _class_token_layers(backbone: Any) -> tuple[list[Any], str | None]:
    """The self-attentions to draw, or none and the reason."""
    tokens = getattr(backbone, "tokens", None)  # of a pretrained backbone
    if tokens is not None and not tokens.tower.class_token:
        return [], "the backbone has no class token, its global token is pooled from the patches"
    every = [layer for layer in backbone.modules() if hasattr(layer, "alpha")]
    layers = attention_layers(backbone)
    if not every:
        return [], f"{type(backbone).__name__} has no self-attention"
    if len(layers) < len(every):
        kind = next(type(layer).__name__ for layer in every if layer not in layers)
        return [], f"the weights of {kind} cannot be told from its input: it does more than project and normalise"
    return layers, None


def _strengths(layer: Any) -> tuple[float, float] | None:
    return None if layer.alpha is None else (layer.alpha.mean().item(), layer.beta.mean().item())


def _class_token(trained: Trained, batch: Batch, layers: list[nn.Module]) -> Tensor:
    """Attention of the first token to the patches, (items modalities blocks patches)."""
    present = batch.present.to(trained.device)
    with recording(layers) as calls:
        patches_and_prior(trained.model, batch, None, trained.device)
    patches = trained.model.backbone.grid[0] * trained.model.backbone.grid[1]
    # One call per layer, on the images that are there; the patches come after all other tokens.
    rows = [
        heads_of(layer, of_layer[0]).weights[:, :, 0, -patches:].mean(dim=1)
        for layer, of_layer in zip(layers, calls, strict=True)
    ]
    return _scatter(torch.stack(rows, dim=1), present).cpu()


def _semantic(trained: Trained, fusion: SemanticFusion, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Attention of the semantic tokens, and the incidence of CHI where there is one."""
    present = batch.present.to(trained.device)
    patches, prior = patches_and_prior(trained.model, batch, trained.tokenizer, trained.device)
    layers: list[Any] = list(fusion.reallocations)
    weights = [
        layer.attention(of_one, prior).mean(dim=1) for layer, of_one in zip(layers, patches.unbind(1), strict=True)
    ]
    semantic = torch.stack(weights, dim=1)
    semantic = semantic.masked_fill(~present[..., None, None], torch.nan).cpu()
    if not isinstance(fusion.interaction, CrossModalHypergraph):
        return semantic, None
    return semantic, fusion.interaction.incidence(fusion.semantic_tokens(patches, prior), present).cpu()


def _scatter(there: Tensor, present: Tensor) -> Tensor:
    """Rows of the images that are there, NaN in the places of the others."""
    everywhere = there.new_full((*present.shape, *there.shape[1:]), torch.nan)
    everywhere[present] = there
    return everywhere
