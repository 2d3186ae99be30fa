"""Names of the parameters in TOP-ReID's released code, and what they are called here."""

import re

from torch import Tensor

# Of one rotation block.
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
# Of one transformer block.
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
# Modality that is read, and the two that `re1` and `re2` make of it: rgb 0, nir 1, tir 2.
_UNITS = {"RGBRE": (0, (1, 2)), "NIRE": (1, (0, 2)), "TIRE": (2, (0, 1))}
_STAGES = {"start": 0, "middle": 1, "end": 2}


def released_permutation(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of a `TokenPermutation` from that of the released module; a single rotation block is one modality."""
    renamed = {}
    for name, value in state.items():
        found = re.fullmatch(r"(?:Ro_(\w+)\.Rotation\.)?(.+)", name)
        assert found is not None
        own = _ROTATION[found[2]]
        if own is not None:
            renamed[f"stages.{_STAGES[found[1] or 'start']}.{own}"] = value
    return renamed


def released_reconstruction(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """State of a `CrossModalReconstruction` from that of the released module."""
    renamed = {}
    for name, value in state.items():
        unit, chain, _, block, own = name.split(".", 4)
        source, targets = _UNITS[unit]
        target = targets[int(chain.removeprefix("re")) - 1]
        renamed[f"chains.{source}_to_{target}.{block}.{_BLOCK[own]}"] = value
    return renamed
