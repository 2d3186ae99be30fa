"""Conversion of EDITOR's released parameters to the names of our layers."""

import torch
from torch import Tensor

from examples.editor.settings import Settings
from examples.towers.releases.heads import FEATURES
from examples.towers.releases.tensors import Carried, Release
from examples.towers.releases.towers import take_tower, tower_settings

# Parameters of the block of one modality; the first letter of the modality replaces the braces.
_WITHIN = {
    "norm{}.weight": "norm_attention.weight",
    "norm{}.bias": "norm_attention.bias",
    "attn{}.qkv.weight": "in_proj_weight",
    "attn{}.proj.weight": "out_proj.weight",
    "norm{}_.weight": "norm_ffn.weight",
    "norm{}_.bias": "norm_ffn.bias",
    "mlp{}.fc1.weight": "ffn.0.weight",
    "mlp{}.fc2.weight": "ffn.2.weight",
}
_ACROSS = {
    "norm1.weight": "joint.norm_attention.weight",
    "norm1.bias": "joint.norm_attention.bias",
    "attn1.qkv.weight": "joint.in_proj_weight",
    "attn1.proj.weight": "joint.out_proj.weight",
    "norm2.weight": "joint.norm_ffn.weight",
    "norm2.bias": "joint.norm_ffn.bias",
    "mlp.fc1.weight": "joint.ffn.0.weight",
    "mlp.fc2.weight": "joint.ffn.2.weight",
    "out_norm.weight": "norm.weight",
    "out_norm.bias": "norm.bias",
}
_MODALITIES = ("RGB", "NIR", "TIR")


def released_aggregation(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state of the released module to that of a `MaskedAggregation`; its centres are left out."""
    names = dict(_ACROSS)
    for number, modality in enumerate(_MODALITIES):
        names |= {theirs.format(modality[0]): f"blocks.{number}.{ours}" for theirs, ours in _WITHIN.items()}
    return {names[name]: value for name, value in state.items() if not name.startswith("memory_cls.")}


def released_centres(state: dict[str, Tensor]) -> Tensor:
    """Return the centres of a `CentreAlignment`, (modalities identities dim), from the released parameters."""
    return torch.stack([state[f"memory_cls.{modality}_centers"] for modality in _MODALITIES])


def carry(release: Release, own: Settings) -> Carried:
    """Carry a whole released file over, of the modalities RGB, NIR and TIR."""
    tower = take_tower(release, "BACKBONE.base.")
    release.leave(r"FREQ_INDEX\.", "selection of bright patches, which is not part of the library")
    state = release.part("FUSE_block.")
    centres = released_centres(state)
    model = {f"aggregation.{name}": value for name, value in released_aggregation(state).items()}
    for part in ("weight", "bias"):
        model[f"reduction.{part}"] = torch.stack([release.take(f"{name}_REDUCE.{part}") for name in _MODALITIES])
    model |= {"centres.centres": centres, "centres.seen": centres.any(dim=2)}
    heads = {"F": release.head("FUSE_BN", "FUSE_HEAD")}
    if joined := release.has("AL_HEAD."):
        heads["G"] = release.head("AL_BN", "AL_HEAD")
        release.leave(r"BACKBONE_(BN|HEAD)\.", "head of single class tokens, which was not trained")
    else:  # one shared head for the class tokens: here each modality gets a copy
        heads |= dict.fromkeys(FEATURES.values(), release.head("BACKBONE_BN", "BACKBONE_HEAD"))
    supervision = "joined" if joined else "single"
    note = "F differs from the release, which also keeps the ten patches with most bright pixels; G does not differ"
    settings = {**tower_settings(tower), "supervision": supervision, "aggregation": True, "centre_start": "zero"}
    return Carried(
        settings, {"backbone": tower}, model, heads, identities=("centres.centres", "centres.seen"), notes=(note,)
    )
