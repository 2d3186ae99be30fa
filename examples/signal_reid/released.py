"""Conversion of Signal's released parameters to the names of our layers."""

import math
import re

import torch
from torch import Tensor

from examples.signal_reid.settings import Settings
from examples.towers.releases.heads import class_token_heads
from examples.towers.releases.tensors import Carried, Release
from examples.towers.releases.towers import take_tower, tower_settings

# Endings of released names, and the names in a model that holds `selection` (TokenSelection), `interaction`
# (SelectiveInteraction), `global_alignment` (GramAlignment) and `local_alignment` (LocalAlignment).
RENAMED = (
    (r"token_selection\.W_q\.(weight|bias)", r"selection.query.\1"),
    (r"token_selection\.W_k\.weight", r"selection.key.weight"),
    (r"modal_interactive\.cross_attn\.(in_proj_\w+|out_proj\.\w+)", r"interaction.\1"),
    (r"modal_interactive\.(ffn\.[02]\.\w+)", r"interaction.\1"),
    (r"modal_interactive\.norm1\.(weight|bias)", r"interaction.norm_attention.\1"),
    (r"modal_interactive\.norm2\.(weight|bias)", r"interaction.norm_ffn.\1"),
)
# The bias of the keys changes no order, and the values of the selection are never read.
UNUSED = r"token_selection\.(W_k\.bias|W_v\.(weight|bias))"
SAMPLERS = ("DAS_r", "DAS_n", "DAS_t")  # RGB, NIR, TIR


def released_state(state: dict[str, Tensor], *, min_temperature: float = 0.01) -> dict[str, Tensor]:
    """Rename the parameters of selection, interaction and both alignments, whatever the prefix of their names.

    Tower, batch norms and classifiers are left out. Set the layers to the released reading:
    `TokenSelection(straight_through=False)`, `SelectiveInteraction(unselected="zeroed")`, `GramAlignment(anchor=0)` and
    `LocalAlignment(points="released", offset_channels=1)`.

    Args:
        state: names and parameters of a released checkpoint, or of one of its modules.
        min_temperature: lowest temperature of the `GramAlignment` that gets the parameter.

    Raises:
        ValueError: when the temperature is not above `min_temperature`, or a sampler lacks a parameter.
    """
    renamed: dict[str, Tensor] = {}
    for name, value in state.items():
        for released, ours in RENAMED:
            if found := re.search(rf"(?:^|\.){released}$", name):
                renamed[found.expand(ours)] = value
        if re.search(r"(?:^|\.)contra_temp$", name):
            renamed["global_alignment.log_excess"] = log_excess(value, min_temperature)
    for index, sampler in enumerate(SAMPLERS):
        own = {
            found[1]: value for name, value in state.items() if (found := re.search(rf"(?:^|\.){sampler}\.(.+)", name))
        }
        if own:
            prefix = f"local_alignment.sampling.{index}"
            renamed |= {f"{prefix}.{name}": value for name, value in released_sampler(own).items()}
    return renamed


def carry(release: Release, own: Settings) -> Carried:
    """Carry a whole released file over; its names tell which parts of Signal it was trained with."""
    tower = take_tower(release, "clip_vision_encoder.base.", "clip_vision_encoder.cv_embed")
    release.leave(rf"SIM\.{UNUSED}", "has no effect: values that are never read, and a bias that changes no order")
    supervision, heads = class_token_heads(release)
    interaction, aligned = release.has("SIM."), release.has("AlignM.")
    model = released_state(release.part("SIM.") | release.part("AlignM."))
    settings = {**tower_settings(tower), "supervision": supervision, "interaction": interaction}
    if interaction:
        heads["F"] = release.head("bottleneck_var", "classifier_var")
    alone = "the file was trained without GAM and LAM, which only training uses"
    kept = {} if aligned else {"global_alignment.": alone, "local_alignment.": alone}
    return Carried(settings, {"backbone": tower}, model, heads, kept)


def released_sampler(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the parameters of one sampler, and merge `proj_q` with the first convolution, which follows it."""
    names = ("proj_q.weight", "proj_q.bias", "conv_offset.0.weight", "conv_offset.0.bias")
    windows = ("conv_offset.2.weight", "conv_offset.2.bias", "conv_offset.4.weight")
    if missing := [name for name in (*names, *windows) if name not in state]:
        raise ValueError(f"state must hold every parameter of a sampler; missing {', '.join(missing)}")
    query, query_bias, mix, mix_bias = (state[name].flatten(1) if "weight" in name else state[name] for name in names)
    return {
        "mix.weight": mix @ query,
        "mix.bias": mix @ query_bias + mix_bias,
        "windows.weight": state["conv_offset.2.weight"],
        "windows.bias": state["conv_offset.2.bias"],
        "offset.weight": state["conv_offset.4.weight"].flatten(1),
    }


def log_excess(temperature: Tensor, min_temperature: float) -> Tensor:
    """Return the parameter of `GramAlignment` that gives this temperature."""
    value = temperature.item()
    if not min_temperature < value < math.inf:
        raise ValueError(f"min_temperature must lie below the released temperature {value}; received {min_temperature}")
    return torch.log(temperature - min_temperature)
