"""Parameters of the released MambaPro tower under the names that `stmi_layers.backbones.adapt` gives them."""

import torch
from torch import Tensor

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
    """State of an adapted open_clip tower, or of one of its blocks, from the released one.

    The first block of a tower has no use for what is carried on, and its `adapter_transfer` is left out.
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
    """Split a name into the text before a released part, the part, and the text behind it."""
    parts = name.split(".")
    for index, part in enumerate(parts):
        if part.startswith("adapter_"):
            return "".join(f"{before}." for before in parts[:index]), part, ".".join(parts[index + 1 :])
    return "", "", name
