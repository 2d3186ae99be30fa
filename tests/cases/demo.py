"""Layers and functions of DeMo."""

import torch
from torch import Tensor

import stmi_layers as sl
from case import DIM, Case, FunctionCase, Inputs, Source, affine


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


def gate_inputs(source: Source, batch: int) -> Inputs:
    weights = (source.normal(DIM, DIM) / DIM**0.5 for _ in range(2))
    return source.normal(batch, DIM), source.normal(batch, 3, DIM), source.flags(batch, 3), *weights


def gates(query: Tensor, features: Tensor, present: Tensor, query_weight: Tensor, key_weight: Tensor) -> Tensor:
    return sl.feature_gates(query, features, query_weight, key_weight, 2, present=present)


FUNCTIONS = {
    "join_patch_mean": FunctionCase(
        lambda globals_, patches, keep, present: sl.join_patch_mean(globals_, patches, keep=keep, present=present),
        reduction_inputs,
    ),
    "join_patch_mean of all": FunctionCase(
        sl.join_patch_mean, lambda source, batch: reduction_inputs(source, batch)[:2]
    ),
    "subset_presence": FunctionCase(
        lambda present: sl.subset_presence(present, sl.modality_subsets(3)),
        lambda source, batch: (source.flags(batch, 3),),
        smooth=False,
    ),
    "subset_attention": FunctionCase(
        lambda tokens, present, rows: sl.subset_attention(tokens, rows, sl.modality_subsets(3), present=present),
        lambda source, batch: (
            source.normal(batch, 3, source.size(1, 4), DIM),
            source.flags(batch, 3),
            source.normal(7, 2, DIM) / 4,
        ),
        shared=(2,),
        dtype=torch.float32,
    ),
    "feature_gates": FunctionCase(gates, gate_inputs, shared=(3, 4), dtype=torch.float32),
    "head_experts": FunctionCase(
        sl.head_experts,
        lambda source, batch: (source.normal(batch, 3, DIM), source.normal(3, 2, 4, 4), source.normal(3, 2, 4)),
        shared=(1, 2),
    ),
}
