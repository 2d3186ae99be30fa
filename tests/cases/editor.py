"""Layers and functions of EDITOR."""

import torch
from torch import Tensor

import stmi_layers as sl
from case import DIM, Case, FunctionCase, Inputs, Source, affine


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


def attention_maps(source: Source, batch: int) -> Inputs:
    tokens = source.size(2, 7)
    return tuple(source.normal(batch, 2, tokens, tokens).softmax(dim=-1) for _ in range(3))


def background_inputs(source: Source, batch: int) -> Inputs:
    return source.normal(batch, 3, 5, DIM), source.flags(batch, 5), source.flags(batch, 3)


def moves(centres: Tensor, seen: Tensor, features: Tensor, labels: Tensor, present: Tensor) -> Tensor:
    return sl.move_centres(centres, seen, features, labels, present=present)[0] - centres


def attention_inputs(source: Source, batch: int) -> Inputs:
    tokens = source.size(1, 9)
    weights = source.normal(3 * DIM, DIM) / DIM, source.normal(DIM, DIM)
    return source.normal(batch, tokens, DIM), source.flags(batch, tokens), *weights


FUNCTIONS = {
    "attention_rollout": FunctionCase(sl.attention_rollout, attention_maps, smooth=False, dtype=torch.float32),
    "select_tokens": FunctionCase(
        lambda scores, present: sl.select_tokens(scores, 2, present),
        lambda source, batch: (source.normal(batch, 2, 3, source.size(2, 9)), source.flags(batch, 2)),
        smooth=False,
        dtype=torch.bool,
    ),
    "masked_self_attention": FunctionCase(
        lambda *inputs: sl.masked_self_attention(*inputs, num_heads=2), attention_inputs, shared=(2, 3)
    ),
    "background_consistency": FunctionCase(
        sl.background_consistency, background_inputs, per_sample=False, dtype=torch.float32
    ),
    "centre_alignment": FunctionCase(
        lambda features, labels, present, centres: sl.centre_alignment(features, labels, centres, present),
        lambda source, batch: (*centre_inputs(source, batch), source.normal(2, 3, DIM)),
        shared=(3,),
        per_sample=False,
        dtype=torch.float32,
    ),
    "move_centres": FunctionCase(
        moves,
        lambda source, batch: (source.normal(2, 3, DIM), source.flags(2, 3), *centre_inputs(source, batch)),
        shared=(0, 1),
        smooth=False,
        per_sample=False,
    ),
}
