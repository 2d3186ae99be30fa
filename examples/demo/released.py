"""Conversion of DeMo's released parameters to the names and shapes of our layers."""

import re

import torch
from torch import Tensor

from examples.demo.settings import Settings
from examples.towers.releases.heads import class_token_heads
from examples.towers.releases.tensors import Carried, Release
from examples.towers.releases.towers import take_tower, tower_settings

MODALITIES = ("rgb", "nir", "tir")
SUBSETS = ("r", "n", "t", "rn", "rt", "nt", "rnt")
GATE = "gating_network.gate."


def released_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Carry a released state dict over to `pooling`, `readout` and `experts`.

    Args:
        state: names and values of the released model, or of one of its parts. A common prefix of the names of a part
            is ignored.

    Returns:
        The entries of the parts that `state` holds, named "pooling.", "readout." and "experts." and then as in
        `GlobalPatchReduction`, `SubsetReadout` and `GatedExperts`. Other entries are left out, and so are the biases
        of the keys, which have no effect.
    """
    parts = {"pooling": _pooling, "readout": _readout, "experts": _experts}
    marks = {"pooling": "rgb_reduce.0.weight", "readout": "r_token", "experts": f"{GATE}q_.weight"}
    result = {}
    for part, carry in parts.items():
        for name in state:
            if name == marks[part] or name.endswith(f".{marks[part]}"):
                prefix = name.removesuffix(marks[part])
                inner = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
                result |= {f"{part}.{key}": value for key, value in carry(inner).items()}
    return result


def carry(release: Release, own: Settings) -> Carried:
    """Carry a whole released file over; its names tell which parts of DeMo it was trained with."""
    tower = take_tower(release, "BACKBONE.base.", "BACKBONE.cv_embed")
    reduces = [f"{modality}_reduce." for modality in MODALITIES]
    pooling, fused = release.has(reduces[0]), release.has("generalFusion.")
    state = {f"{prefix}{name}": value for prefix in reduces for name, value in release.part(prefix).items()}
    state |= release.part("generalFusion.")
    model = released_state(state)
    supervision, heads = class_token_heads(release)
    settings = {**tower_settings(tower), "pooling": pooling, "fusion": "none", "supervision": supervision}
    if fused:
        experts = any(name.startswith("experts.") for name in model)
        settings |= {"fusion": "experts" if experts else "subsets", "subsets": "all"}
        settings["readout_heads"] = model["readout.queries"].shape[1] // 64
        if experts:
            settings["expert_heads"] = model["experts.expert_weight"].shape[1]
        heads["experts" if experts else "subsets"] = release.head("bottleneck_moe", "classifier_moe")
    notes = (
        ("biases of the keys, the middle third of in_proj_bias, are left out: the softmax cancels them",)
        if fused
        else ()
    )
    return Carried(settings, {"backbone": tower}, model, heads, notes=notes)


def _pooling(state: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"norm_weight": "0.weight", "norm_bias": "0.bias", "weight": "1.weight", "bias": "1.bias"}
    return {
        ours: torch.stack([state[f"{modality}_reduce.{theirs}"] for modality in MODALITIES])
        for ours, theirs in names.items()
    }


def _readout(state: dict[str, Tensor]) -> dict[str, Tensor]:
    weights = torch.stack([state[f"{subset}.in_proj_weight"] for subset in SUBSETS]).chunk(3, dim=1)
    biases = torch.stack([state[f"{subset}.in_proj_bias"] for subset in SUBSETS]).chunk(3, dim=1)
    return {
        "queries": torch.stack([state[f"{subset}_token"].flatten() for subset in SUBSETS]),
        "query_weight": weights[0],
        "query_bias": biases[0],
        "key_weight": weights[1],
        "value_weight": weights[2],
        "value_bias": biases[2],
        "out_weight": torch.stack([state[f"{subset}.out_proj.weight"] for subset in SUBSETS]),
        "out_bias": torch.stack([state[f"{subset}.out_proj.bias"] for subset in SUBSETS]),
    }


def _experts(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = [re.fullmatch(r"experts\.(\d+)\.expertHead\.(\d+)\.mlp\.0\.bias", name) for name in state]
    heads, features = (1 + max(int(match[group]) for match in found if match) for group in (1, 2))

    def stacked(name: str) -> Tensor:
        """Stack one parameter of all experts, (features, heads, ...)."""
        places = [
            [f"experts.{head}.expertHead.{feature}.mlp.{name}" for head in range(heads)] for feature in range(features)
        ]
        return torch.stack([torch.stack([state[place] for place in row]) for row in places])

    statistics = ("weight", "bias", "running_mean", "running_var")
    return {
        "join.weight": state[f"{GATE}linear_re.0.weight"],
        "join.bias": state[f"{GATE}linear_re.0.bias"],
        **{f"norm_joined.{name}": state[f"{GATE}linear_re.2.{name}"] for name in (*statistics, "num_batches_tracked")},
        "query_weight": state[f"{GATE}q_.weight"],
        "key_weight": state[f"{GATE}k_.weight"],
        "expert_weight": stacked("0.weight"),
        "expert_bias": stacked("0.bias"),
        **{f"norm_experts.{name}": stacked(f"2.{name}").flatten() for name in statistics},
        "norm_experts.num_batches_tracked": state["experts.0.expertHead.0.mlp.2.num_batches_tracked"],
    }
