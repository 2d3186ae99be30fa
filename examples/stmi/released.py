"""Conversion of STMI's released parameters to the names of our layers.

Each function takes the part of a released state dict of one module, without the prefix of the module.
"""

import torch
from torch import Tensor

State = dict[str, Tensor]


def attention_state(state: State) -> State:
    """Map an attention block to `SegmentationModulatedAttention`; parts around the attention are left out."""
    projections = {name.removeprefix("attn."): value for name, value in state.items() if name.startswith("attn.")}
    return {**projections, "alpha": state["adapter_alpha"], "beta": state["adapter_beta"]}


def reallocation_state(state: State, queries: Tensor) -> State:
    """Map an aggregation block to `SemanticTokenReallocation`, whose norms need an `eps` of 1e-6.

    The released block has one norm for queries and patches, and its `queries` are a parameter outside the block.
    """
    both = {
        f"{norm}.{part}": state[f"norm1.{part}"] for norm in ("norm_queries", "norm_patches") for part in PARAMETERS
    }
    packed = {f"in_proj_{part}": torch.cat([state[f"attn.q.{part}"], state[f"attn.kv.{part}"]]) for part in PARAMETERS}
    others = {"out_proj": "attn.proj", "norm_ffn": "norm2", "ffn.0": "mlp.fc1", "ffn.2": "mlp.fc2"}
    named = {f"{ours}.{part}": state[f"{theirs}.{part}"] for ours, theirs in others.items() for part in PARAMETERS}
    return {"queries": queries, **both, **packed, **named}


def readout_state(state: State) -> State:
    """Map the last cross-attention to `GlobalCrossAttention(num_heads=1, norm=False)`."""
    names = [f"proj_{part}_cross" for part in ("q", "k", "v")]
    packed = {f"in_proj_{part}": torch.cat([state[f"{name}.{part}"] for name in names]) for part in PARAMETERS}
    return {**packed, **{f"out_proj.{part}": state[f"cross_proj_out.{part}"] for part in PARAMETERS}}


PARAMETERS = ("weight", "bias")
