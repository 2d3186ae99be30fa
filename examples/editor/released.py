"""Names of the parameters in EDITOR's released code, and what they are called here."""

import torch
from torch import Tensor

# Of the block of one modality; the first letter of its name takes the place of the braces.
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
    """State of a `MaskedAggregation` from that of the released module, whose centres are left out."""
    names = dict(_ACROSS)
    for number, modality in enumerate(_MODALITIES):
        names |= {theirs.format(modality[0]): f"blocks.{number}.{ours}" for theirs, ours in _WITHIN.items()}
    return {names[name]: value for name, value in state.items() if not name.startswith("memory_cls.")}


def released_centres(state: dict[str, Tensor]) -> Tensor:
    """Centres of a `CentreAlignment`, (modalities identities dim), from the parameters of the released module."""
    return torch.stack([state[f"memory_cls.{modality}_centers"] for modality in _MODALITIES])
