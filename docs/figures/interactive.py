"""What the interactive figures compute with: queries and keys, and semantic tokens, of a trained model.

    make demo
    python -m docs.figures.interactive --checkpoint runs/demo/checkpoint.pt

writes the numbers as JSON, tensors as float32 in base64, the images as PNG, and a still picture of either figure for
readers without scripts.
"""

import base64
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from docs.figures import stills
from examples import cli as command
from examples.restore import Trained, restore
from examples.stmi.model import STMI
from examples.towers.tower import tower_tokens
from examples.towers.vit import VisionTransformer
from stmi_layers import (
    CrossModalHypergraph,
    SegmentationModulatedAttention,
    SemanticTokenReallocation,
    token_foreground,
)
from stmi_layers.training import Machine, MultiModalDataset, collate

OUT = Path(__file__).parents[1] / "assets" / "try"


@dataclass(frozen=True)
class Arguments:
    checkpoint: Path
    """The checkpoint.pt of a run on the synthetic set."""
    items: tuple[str, ...] = ("000123_cam4_0_00", "000121_cam2_0_00", "000198_cam3_0_00")
    """Test items by file name: all for the hypergraph, the first for the attention."""


def main(arguments: Arguments) -> None:
    trained = restore(arguments.checkpoint, machine=Machine(device="cpu"))
    dataset, modalities = trained.dataset, trained.run.data.modalities
    named = {Path(item.name).stem: index for index, item in enumerate(dataset.items)}
    unknown = [name for name in arguments.items if name not in named]
    if unknown:
        raise ValueError(f"items must be file names of the test split; received {', '.join(unknown)}")
    indices = [named[name] for name in arguments.items]
    OUT.mkdir(parents=True, exist_ok=True)
    for index in indices:
        copy_images(dataset, index, modalities)
    attention = attention_of(trained.model, dataset, indices[0], modalities)
    hypergraph = semantic_tokens_of(trained, indices)
    (OUT / "sfm.json").write_text(json.dumps(attention) + "\n")
    (OUT / "chi.json").write_text(json.dumps(hypergraph) + "\n")
    stills.attention(OUT)
    stills.hypergraph(OUT)


def copy_images(dataset: MultiModalDataset, index: int, modalities: tuple[str, ...]) -> None:
    for source, modality in zip(dataset.items[index].images, modalities, strict=True):
        if not isinstance(source, Path):
            raise ValueError(f"items must have a file per modality; {dataset.items[index].name} has {source}")
        shutil.copyfile(source, OUT / f"{source.stem}-{modality}.png")


@torch.no_grad()
def attention_of(model: STMI, dataset: MultiModalDataset, index: int, modalities: tuple[str, ...]) -> dict[str, Any]:
    """Queries, keys and strengths of the last SFM layer for one item, and the mask of its tokens."""
    backbone = model.backbone
    if not isinstance(backbone, VisionTransformer):
        raise ValueError(f"checkpoint must be of the small vision transformer; received a {type(backbone).__name__}")
    layers = [module for module in model.modules() if isinstance(module, SegmentationModulatedAttention)]
    seen: list[Tensor] = []
    hook = layers[-1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    batch = collate([dataset[index]])
    tower_tokens(backbone, batch)
    hook.remove()
    query, key, _ = project(layers[-1], seen[0])
    assert batch.masks is not None
    grid = backbone.grid
    foreground = token_foreground(batch.masks[0], grid, threshold=backbone.foreground_threshold)
    name = Path(dataset.items[index].name).stem
    return {
        "grid": grid,
        "heads": query.shape[1],
        "head_dim": query.shape[3],
        "alpha": layers[-1].alpha.tolist(),
        "beta": layers[-1].beta.tolist(),
        "images": [
            {
                "modality": modality,
                "file": f"{name}-{modality}.png",
                "foreground": "".join(str(int(token)) for token in foreground[m]),
                "query": encoded(query[m]),
                "key": encoded(key[m]),
            }
            for m, modality in enumerate(modalities)
        ],
    }


def project(layer: SegmentationModulatedAttention, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value as `layer` makes them, (batch heads tokens head_dim) each."""
    projected = F.linear(tokens, layer.in_proj_weight, layer.in_proj_bias)
    query, key, value = rearrange(projected, "b n (three h d) -> three b h n d", three=3, h=layer.num_heads)
    return query, key, value


@torch.no_grad()
def semantic_tokens_of(trained: Trained, indices: list[int]) -> dict[str, Any]:
    """Semantic tokens before the hypergraph, where to draw them, and the patch that STR read most into each."""
    model, dataset, modalities = trained.model, trained.dataset, trained.run.data.modalities
    if not isinstance(model.interaction, CrossModalHypergraph):
        raise ValueError("checkpoint must be of a model with STR and CHI; its settings leave one of them out")
    batch = collate([dataset[index] for index in indices])
    patches, _ = tower_tokens(model.backbone, batch)
    prior = None if model.text_encoder is None else model.text_encoder(batch.texts, batch.has_text)
    tokens = model.semantic_tokens(patches, prior)
    most_read = patches_most_read(model, patches, prior)
    samples = []
    for index, nodes, read in zip(indices, tokens.flatten(1, 2), most_read, strict=True):
        name = Path(dataset.items[index].name).stem
        files = [f"{name}-{modality}.png" for modality in modalities]
        drawn = {"places": places(nodes), "patches": read.flatten().tolist()}
        samples.append({"name": name, "files": files, "nodes": encoded(nodes), **drawn})
    return {
        "modalities": modalities,
        "grid": model.backbone.grid,
        "tokens": tokens.shape[2],
        "dim": tokens.shape[3],
        "threshold": model.interaction.threshold,
        "samples": samples,
    }


def patches_most_read(model: STMI, patches: Tensor, prior: Tensor | None) -> Tensor:
    """Index of the patch with the greatest mean weight over the heads, (batch modalities semantic)."""
    layers = [layer for layer in model.modules() if isinstance(layer, SemanticTokenReallocation)]
    per_modality = zip(layers, patches.unbind(1), strict=True)
    maps = [layer.attention(of_one, prior).mean(1) for layer, of_one in per_modality]
    return torch.stack(maps, dim=1).argmax(-1)


def places(nodes: Tensor) -> list[list[float]]:
    """Points in [-1, 1]² that keep what two dimensions can of the angles: the principal components of unit vectors."""
    unit = F.normalize(nodes.double(), dim=-1)
    left, values, _ = torch.linalg.svd(unit - unit.mean(0), full_matrices=False)
    points = left[:, :2] * values[:2]
    farthest = points.gather(0, points.abs().argmax(0, keepdim=True))
    points = points * farthest.sign()  # a component is one up to its sign
    return (points / points.abs().max()).mul(1000).round().div(1000).tolist()


def encoded(tensor: Tensor) -> str:
    """The numbers in row order, as little-endian float32 in base64."""
    return base64.b64encode(tensor.contiguous().numpy().astype("<f4").tobytes()).decode()


if __name__ == "__main__":
    command.run(main, Arguments, __doc__)
