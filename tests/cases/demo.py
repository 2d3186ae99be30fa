"""Layers of DeMo."""

import torch
from torch import Tensor

import stmi_layers as sl
from case import DIM, Case, Inputs, Source, affine


def reduction_inputs(source: Source, batch: int) -> Inputs:
    patches = source.size(1, 9)
    return (
        source.normal(batch, 3, DIM),
        source.normal(batch, 3, patches, DIM),
        source.flags(batch, 3, patches),
        source.flags(batch, 3),
    )


def subset_inputs(source: Source, batch: int) -> Inputs:
    return source.normal(batch, 3, source.size(1, 9), DIM), source.flags(batch, 3)


def feature_inputs(source: Source, batch: int) -> Inputs:
    present = source.flags(batch, 3)
    present[:2] = True  # where fewer than two samples have a feature, batch norm has no statistics of it
    return source.normal(batch, 3, DIM), present


def gated(layer: sl.GatedExperts, features: Tensor, present: Tensor) -> Tensor:
    features = torch.where(present[..., None], features, 0.0)
    experts = sl.head_experts(features, layer.expert_weight, layer.expert_bias)
    experts = layer.norm_experts(experts.flatten(1)).reshape(len(features), 3, 2, -1)
    return (experts * layer.gates(features, present).mT[..., None]).flatten(2)


CASES = {
    "GlobalPatchReduction": Case(
        build=lambda device, dtype: sl.GlobalPatchReduction(DIM, 3, device=device, dtype=dtype),
        inputs=reduction_inputs,
        shape=lambda globals_, *_: globals_.shape,
        state=("norm_weight", "norm_bias", "weight", "bias"),
        width="globals must have num_modalities=3 rows of width dim=8",
    ),
    "GlobalPatchReduction without norm": Case(
        build=lambda device, dtype: sl.GlobalPatchReduction(
            DIM, 3, norm=False, activation="none", device=device, dtype=dtype
        ),
        inputs=reduction_inputs,
        shape=lambda globals_, *_: globals_.shape,
        state=("weight", "bias"),
        width="globals must have num_modalities=3 rows of width dim=8",
    ),
    "SubsetReadout": Case(
        build=lambda device, dtype: sl.SubsetReadout(DIM, 3, num_heads=2, dropout=0.3, device=device, dtype=dtype),
        inputs=subset_inputs,
        shape=lambda tokens, _: (len(tokens), 7, DIM),
        state=(
            "queries",
            *(f"{part}_weight" for part in ("query", "key", "value", "out")),
            *(f"{part}_bias" for part in ("query", "value", "out")),
        ),
        width="tokens must have num_modalities=3 and width dim=8",
        random=True,
    ),
    "SubsetReadout of the ends": Case(
        build=lambda device, dtype: sl.SubsetReadout(
            DIM, 3, num_heads=2, subsets="ends", incomplete="drop", device=device, dtype=dtype
        ),
        inputs=subset_inputs,
        shape=lambda tokens, _: (len(tokens), 4, DIM),
        state=(
            "queries",
            *(f"{part}_weight" for part in ("query", "key", "value", "out")),
            *(f"{part}_bias" for part in ("query", "value", "out")),
        ),
        width="tokens must have num_modalities=3 and width dim=8",
    ),
    "GatedExperts": Case(
        build=lambda device, dtype: sl.GatedExperts(DIM, 3, num_heads=2, device=device, dtype=dtype),
        inputs=feature_inputs,
        shape=lambda features, _: features.shape,
        state=(
            *affine("join", "norm_joined", "norm_experts"),
            *(
                f"{norm}.{name}"
                for norm in ("norm_joined", "norm_experts")
                for name in ("running_mean", "running_var", "num_batches_tracked")
            ),
            "query_weight",
            "key_weight",
            "expert_weight",
            "expert_bias",
        ),
        twin=gated,
        width="features must have num_features=3 rows of width dim=8",
    ),
}
