"""Measure how semantic tokens of a trained STMI vary: `python -m examples.stmi.tokens --checkpoint FILE`.

CHI compares tokens by their cosine. If all tokens of all images are nearly one vector, the cosine says nothing about
the images, whatever the threshold. The command measures how much tokens vary between images, and how large hyperedges
are with and without the mean over the images.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from torch import Tensor

from examples import cli
from examples.restore import Computer, load_model, restore
from examples.stmi.model import STMI
from examples.train import build_model
from stmi_layers import incidence_statistics, similarity_incidence
from stmi_layers.training import Batch, Machine, collate

THRESHOLDS = (0.3, 0.5, 0.7, 0.9)
ITEMS = 64


@dataclass(frozen=True)
class Arguments:
    """Measurement of a trained model on the split that its run was scored on."""

    checkpoint: Path
    """The checkpoint.pt of a run of STMI."""
    untrained: bool = False
    """Measure the model as before its first epoch, with batch statistics of the split; write untrained.json."""
    machine: tyro.conf.OmitArgPrefixes[Computer] = field(default_factory=Computer)


@torch.no_grad()
def measure(model: STMI, batches: list[Batch]) -> dict[str, Any]:
    """Measure the tokens of all items together.

    Returns:
        `varies`: share of the squared norm, in percent, that is deviation from the mean over images, for patches at one
        place, class tokens and semantic tokens; `entropy`: entropy of the attention of STR in percent of a uniform
        attention; `cosine`: mean cosine of two semantic tokens of one modality, and of two modalities, for tokens and
        for their deviations from the mean; `edge_size`: nodes per hyperedge by threshold, for tokens and deviations;
        `read`: variance of what the readout adds to G, in percent of the variance of G; `distance`: mean distances of G
        (not normalised) to the farthest item of the same identity and to the nearest item of another identity, which
        the triplet loss compares.
    """
    seen = [_look(model, batch) for batch in batches]
    labels = torch.cat([batch.labels for batch in batches])
    patches, globals_, tokens, weights, read = (torch.cat(parts) for parts in zip(*seen, strict=True))
    deviations = tokens - tokens.mean(0)
    entropy = -(weights * weights.clamp(min=1e-12).log()).sum(-1).mean() / math.log(weights.shape[-1])
    sizes = {threshold: [_edge_size(each, threshold) for each in (tokens, deviations)] for threshold in THRESHOLDS}
    return {
        "varies": {"patches": _varies(patches), "class": _varies(globals_), "semantic": _varies(tokens)},
        "entropy": 100 * entropy.item(),
        "cosine": {"tokens": _cosines(tokens), "deviations": _cosines(deviations)},
        "edge_size": sizes,
        "nodes": tokens.shape[1] * tokens.shape[2],
        "read": 100 * (_variance(read) / _variance(globals_)).item(),
        "distance": _hardest(globals_.flatten(1), labels),
    }


def _look(model: STMI, batch: Batch) -> tuple[Tensor, ...]:
    """Return patches, class tokens, semantic tokens, weights of STR, and what the readout adds to the class tokens."""
    assert model.reallocations is not None
    patches, globals_ = model.backbone(batch.images, batch.masks, batch.cameras)  # (b m n d), (b m d)
    prior = None if model.text_encoder is None else model.text_encoder(batch.texts, batch.has_text)
    weights: list[Tensor] = []

    # The input of STR is recorded, because a derived model may change the patches of the tower.
    def keep(layer: Any, given: Any) -> None:
        weights.append(layer.attention(*given))

    hooks = [layer.register_forward_pre_hook(keep) for layer in model.reallocations]
    tokens = model.semantic_tokens(patches, prior)  # (b m k d)
    for hook in hooks:
        hook.remove()
    fused = tokens if model.interaction is None else model.interaction(tokens, None)
    return patches, globals_, tokens, torch.stack(weights, 1), model.read(globals_, fused, None) - globals_


@torch.no_grad()
def untrained_model(checkpoint: Path, batches: list[Batch], machine: Machine) -> STMI:
    """Build the model of a run before its first epoch, with batch norms of the statistics of the batches."""
    loaded = load_model(checkpoint, machine=machine)
    model = build_model(loaded.run, loaded.facts)[0].to(batches[0].images.device)
    for module in model.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the mean over all batches
    for batch in batches:
        model.train()(batch)
    return model.eval()


def _variance(values: Tensor) -> Tensor:
    return (values - values.mean(0)).square().sum()


def _varies(values: Tensor) -> float:
    return 100 * (_variance(values) / values.square().sum()).item()


def _hardest(features: Tensor, labels: Tensor) -> list[float]:
    """Return the mean distances to the farthest item of the same label, and to the nearest item of another label."""
    # Matrix products would lose the digits of small distances between long vectors.
    distance = torch.cdist(features, features, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels
    farthest = distance.where(same, -math.inf).amax(dim=1)
    return [farthest.mean().item(), distance.where(~same, math.inf).amin(dim=1).mean().item()]


def _cosines(tokens: Tensor) -> list[float]:
    """Return the mean cosine of two tokens of one modality, and of two tokens of different modalities."""
    modalities, count = tokens.shape[1:3]
    unit = F.normalize(rearrange(tokens, "b m k d -> b (m k) d"), dim=-1)
    cosine = (unit @ unit.mT).mean(0)
    modality = torch.arange(modalities).repeat_interleave(count)
    same = modality[:, None] == modality
    return [cosine[same & ~torch.eye(len(same), dtype=torch.bool)].mean().item(), cosine[~same].mean().item()]


def _edge_size(tokens: Tensor, threshold: float) -> float:
    incidence = similarity_incidence(tokens.flatten(1, 2), threshold)
    return incidence_statistics(incidence, tokens.shape[1])[0].mean().item()


def as_text(found: dict[str, Any]) -> str:
    """Format the numbers in lines."""
    varies = ", ".join(f"{name} {value:.3g} %" for name, value in found["varies"].items())
    lines = [
        f"varies between images: {varies}",
        f"entropy of STR's attention: {found['entropy']:.2f} % of uniform",
        f"variance of what U adds to G: {found['read']:.3g} % of the variance of G",
        "distance of G: {:.3g} to the farthest item of its identity, {:.3g} to the nearest of another".format(
            *found["distance"]
        ),
        f"{'':34}{'tokens':>8}{'less their mean':>17}",
    ]
    pairs = {
        f"cosine, {name} modality": [found["cosine"][kind][place] for kind in ("tokens", "deviations")]
        for place, name in enumerate(("within a", "to another"))
    }
    pairs |= {f"hyperedge at {value:g}, of {found['nodes']} nodes": size for value, size in found["edge_size"].items()}
    return "\n".join([*lines, *(f"{name:34}{one:8.2f}{other:17.2f}" for name, (one, other) in pairs.items())])


def main(arguments: Arguments) -> dict[str, Any]:
    """Print the numbers and write them to tokens.json or untrained.json beside the checkpoint."""
    machine = arguments.machine.machine(quiet=True)
    trained = restore(arguments.checkpoint, machine=machine)
    model, dataset = trained.model, trained.dataset
    if not isinstance(model, STMI) or model.reallocations is None:
        raise ValueError(f"checkpoint must be that of STMI with STR; received one of {trained.run.method}")
    if any(image is None for item in dataset.items for image in item.images):
        raise ValueError("items must have all modalities; received items that lack some")
    groups = [range(start, min(start + ITEMS, len(dataset))) for start in range(0, len(dataset), ITEMS)]
    batches = [collate([dataset[index] for index in group]).to(trained.device) for group in groups]
    if arguments.untrained:
        model = untrained_model(arguments.checkpoint, batches, machine)
    found = measure(model, batches)
    print(as_text(found))
    name = "untrained.json" if arguments.untrained else "tokens.json"
    (arguments.checkpoint.parent / name).write_text(json.dumps(found, indent=2) + "\n")
    return found


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.stmi.tokens")
