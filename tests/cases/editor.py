"""Layers of EDITOR."""

import torch

import stmi_layers as sl
from case import DIM, Case, Inputs, Source, affine


def kept_inputs(source: Source, batch: int) -> Inputs:
    tokens = source.size(1, 9)
    return source.normal(batch, 2, tokens, DIM), source.flags(batch, 2, tokens), source.flags(batch, 2)


def few_kept_inputs(source: Source, batch: int) -> Inputs:
    tokens, keep, present = kept_inputs(source, batch)
    return tokens, keep & (torch.arange(keep.shape[2]) < 3), present


def centre_inputs(source: Source, batch: int) -> Inputs:
    return source.normal(batch, 2, DIM), torch.arange(batch) % 3, source.flags(batch, 2)


BLOCK = ("in_proj_weight", "out_proj.weight", "ffn.0.weight", "ffn.2.weight", *affine("norm_attention", "norm_ffn"))
AGGREGATION = (*(f"{block}.{name}" for block in ("blocks.0", "blocks.1", "joint") for name in BLOCK), *affine("norm"))

CASES = {
    "MaskedAggregation": Case(
        build=lambda device, dtype: sl.MaskedAggregation(DIM, 2, num_heads=2, device=device, dtype=dtype),
        inputs=kept_inputs,
        shape=lambda tokens, *_: tokens.shape,
        state=AGGREGATION,
        twin=lambda layer, *inputs: layer.across(layer.within(*inputs), *inputs[1:]),
        width="tokens must have width dim=8",
    ),
    "MaskedAggregation with a bound": Case(
        build=lambda device, dtype: sl.MaskedAggregation(DIM, 2, num_heads=2, max_kept=3, device=device, dtype=dtype),
        inputs=few_kept_inputs,
        shape=lambda tokens, *_: tokens.shape,
        state=AGGREGATION,
        width="tokens must have width dim=8",
    ),
    "CentreAlignment": Case(
        build=lambda device, dtype: sl.CentreAlignment(DIM, 5, 2, rate=0.5, device=device, dtype=dtype),
        inputs=centre_inputs,
        shape=lambda *_: (),
        state=("centres", "seen"),
        twin=lambda layer, features, labels, present: sl.centre_alignment(features, labels, layer.centres, present),
        width="features must have width dim=8",
        per_sample=False,
        half_result=torch.float32,
    ),
}
