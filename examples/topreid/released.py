"""Conversion of TOP-ReID's released parameters to the names of our layers."""

import re

from torch import Tensor

from examples.topreid.settings import Settings
from examples.towers.releases.heads import FEATURES
from examples.towers.releases.tensors import Carried, Release
from examples.towers.releases.towers import take_tower, tower_settings

# Parameters of one rotation block.
_ROTATION = {
    "norm1.weight": "norm_globals.weight",
    "norm1.bias": "norm_globals.bias",
    "attn.normy.weight": "key_scale",
    "attn.normy.bias": None,  # the softmax cancels it
    "attn.q_.weight": "query.weight",
    "attn.k_.weight": "key.weight",
    "attn.v_.weight": "value.weight",
    "attn.proj.weight": "out_proj.weight",
    "attn.proj.bias": "out_proj.bias",
    "norm2.weight": "norm_ffn.weight",
    "norm2.bias": "norm_ffn.bias",
    "mlp.fc1.weight": "ffn.0.weight",
    "mlp.fc1.bias": "ffn.0.bias",
    "mlp.fc2.weight": "ffn.2.weight",
    "mlp.fc2.bias": "ffn.2.bias",
}
# Parameters of one transformer block.
_BLOCK = {
    "norm1.weight": "norm_attention.weight",
    "norm1.bias": "norm_attention.bias",
    "attn.qkv.weight": "in_proj_weight",
    "attn.proj.weight": "out_proj.weight",
    "attn.proj.bias": "out_proj.bias",
    "norm2.weight": "norm_ffn.weight",
    "norm2.bias": "norm_ffn.bias",
    "mlp.fc1.weight": "ffn.0.weight",
    "mlp.fc1.bias": "ffn.0.bias",
    "mlp.fc2.weight": "ffn.2.weight",
    "mlp.fc2.bias": "ffn.2.bias",
}
# Source modality, and the two targets that `re1` and `re2` predict from it: rgb 0, nir 1, tir 2.
_UNITS = {"RGBRE": (0, (1, 2)), "NIRE": (1, (0, 2)), "TIRE": (2, (0, 1))}
_STAGES = {"start": 0, "middle": 1, "end": 2}


def released_permutation(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state of the released module to a `TokenPermutation`; a single rotation block is one modality."""
    renamed = {}
    for name, value in state.items():
        found = re.fullmatch(r"(?:Ro_(\w+)\.Rotation\.)?(.+)", name)
        assert found is not None
        own = _ROTATION[found[2]]
        if own is not None:
            renamed[f"stages.{_STAGES[found[1] or 'start']}.{own}"] = value
    return renamed


def released_reconstruction(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the state of the released module to a `CrossModalReconstruction`."""
    renamed = {}
    for name, value in state.items():
        unit, chain, _, block, own = name.split(".", 4)
        source, targets = _UNITS[unit]
        target = targets[int(chain.removeprefix("re")) - 1]
        renamed[f"chains.{source}_to_{target}.{block}.{_BLOCK[own]}"] = value
    return renamed


def carry(release: Release, own: Settings) -> Carried:
    """Carry a whole released file over.

    A file holds heads for both kinds of supervision; only the heads for the supervision of `own` were trained.
    """
    modalities = ("RGB", "NI", "TI")
    towers = {f"towers.{index}": take_tower(release, f"{name}.base.") for index, name in enumerate(modalities)}
    other = "head of class tokens that was not trained on this data set"
    heads = {"F": release.head("bottleneck_TPM", "classifier_TPM")}
    if own.supervision == "joined":
        heads["G"] = release.head("bottleneck_ViT", "classifier_ViT")
    else:
        names = zip(FEATURES.values(), modalities, strict=True)
        heads |= {feature: release.head(f"{name}.bottleneck", f"{name}.classifier") for feature, name in names}
    release.leave(r"(RGB|NI|TI)\.(bottleneck|classifier)\.|(bottleneck|classifier)_ViT\.", other)
    release.leave(r"TPM\.Ro_\w+\.Rotation\.attn\.normy\.bias", "has no effect: the softmax cancels it")
    model = {f"permutation.{name}": value for name, value in released_permutation(release.part("TPM.")).items()}
    settings = {**tower_settings(towers["towers.0"]), "towers": "separate", "reconstruction": "none"}
    if release.has("CRM."):
        rebuilt = released_reconstruction(release.part("CRM."))
        model |= {f"reconstruction.{name}": value for name, value in rebuilt.items()}
        depth = 1 + max(int(name.split(".")[2]) for name in rebuilt)
        settings |= {"reconstruction": own.reconstruction, "reconstruction_depth": depth}
    return Carried(settings, towers, model, heads)
