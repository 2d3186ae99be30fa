"""Conversion of MambaPro's released parameters to the names of `stmi_layers.backbones.adapt`."""

import torch
from torch import Tensor

from examples.mambapro.settings import Settings
from examples.towers.releases.heads import FEATURES
from examples.towers.releases.tensors import Carried, Release
from examples.towers.releases.towers import take_tower, tower_settings

# Released parts of a block -> ours.
_NETWORKS = {
    "adapter_ffn": "adapter",
    "adapter_r": "prompts.foreign.0",
    "adapter_n": "prompts.foreign.1",
    "adapter_t": "prompts.foreign.2",
    "adapter_transfer": "prompts.carry",
}
_PROMPTS = ("adapter_prompt_rgb", "adapter_prompt_nir", "adapter_prompt_tir")


def released_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state of the released tower, or of one of its blocks, to that of an adapted open_clip tower.

    `adapter_transfer` of the first block is left out, because it has no effect there.
    """
    found: dict[str, Tensor] = {}
    for name, value in state.items():
        owner, network, rest = _split(name)
        if network in _NETWORKS:
            layer, _, part = rest.partition(".")
            if not (network == "adapter_transfer" and owner.endswith("resblocks.0.")):
                found[f"{owner}{_NETWORKS[network]}.{'expand' if layer == '0' else 'project'}.{part}"] = value
        elif network == _PROMPTS[0]:
            found[f"{owner}prompts.prompts"] = torch.stack([state[f"{owner}{prompt}"] for prompt in _PROMPTS])
        elif network not in _PROMPTS:
            found[name] = value
    return found


def _split(name: str) -> tuple[str, str, str]:
    """Split a name into the text before a released part, the part, and the text after it."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.startswith("adapter_"):
            return "".join(f"{before}." for before in parts[:index]), part, ".".join(parts[index + 1 :])
    return "", "", name


def carry(release: Release, own: Settings) -> Carried:
    """Carry a whole released file over, except its Mamba.

    A file holds heads for both kinds of supervision; only the heads for the supervision of `own` were trained.
    """
    release.leave(r"AAM\.ma_block\.", "Mamba aggregation, which is not part of the library")
    release.leave(r"BACKBONE\.base\.transformer\.resblocks\.0\.adapter_transfer\.", "has no effect in the first block")
    tower = take_tower(release, "BACKBONE.base.", "BACKBONE.cv_embed")
    adapters = any(".adapter_ffn." in name for name in tower.tensors)
    prompts = next((value for name, value in tower.tensors.items() if name.endswith(_PROMPTS[0])), None)
    expand = next((value for name, value in tower.tensors.items() if name.endswith("adapter_ffn.0.weight")), None)
    hidden = None if expand is None or expand.shape[0] == 2 * expand.shape[1] else expand.shape[0]
    tower = tower._replace(tensors=released_state(tower.tensors))
    model = {}
    for theirs, ours in (("0.", "norm_"), ("1.", "")):
        for part in ("weight", "bias"):
            names = [f"AAM.linear_reduction_{letter}.{theirs}{part}" for letter in FEATURES]
            model[f"reduction.{ours}{part}"] = torch.stack([release.take(name) for name in names])
    heads = {"F": release.head("bottleneck_fuse", "classifier_fuse")}
    if own.supervision == "joined":
        heads["G"] = release.head("bottleneck", "classifier")
    else:  # one shared head for the class tokens: here each modality gets a copy
        heads |= dict.fromkeys(FEATURES.values(), release.head("BACKBONE.bottleneck", "BACKBONE.classifier"))
    other = "head of class tokens that was not trained on this data set"
    release.leave(r"(BACKBONE\.)?(bottleneck|classifier)\.", other)
    settings = {**tower_settings(tower), "aggregation": "none", "adapters": adapters, "hidden": hidden}
    settings["num_prompts"] = 0 if prompts is None else len(prompts)
    note = "F differs from the release, whose patches pass a Mamba first: train the model further. G does not differ"
    return Carried(settings, {"backbone": tower}, model, heads, notes=(note,))
