"""Layers and functions of NEXT."""

import torch
from torch import nn

import stmi_layers as sl
from case import DIM, PROJECTIONS, Case, FunctionCase, Inputs, Source, affine

NETWORKS = tuple(
    f"experts.{name}"
    for name in ("norm_weight", "norm_bias", "expand_weight", "expand_bias", "contract_weight", "contract_bias")
)


def text_experts(device: str, dtype: torch.dtype, **options) -> nn.Module:
    layer = sl.TextModulatedExperts(DIM, 3, 2, device=device, dtype=dtype, **options)
    nn.init.normal_(layer.mix_contract.weight)  # it starts at zero, and what lies before it without a gradient
    return layer


def text_inputs(source: Source, batch: int, width: int = DIM) -> Inputs:
    patches, text = source.normal(batch, 3, source.size(1, 9), DIM), source.normal(batch, 2, 3, width)
    return patches, text, source.flags(batch, 3), source.flags(batch)


CASES = {
    "TextModulatedExperts": Case(
        build=lambda device, dtype: text_experts(device, dtype, dropout=0.3),
        inputs=text_inputs,
        shape=lambda patches, *_: (len(patches), 2, 3 * patches.shape[2], DIM),
        state=(*NETWORKS, "route_weight", "route_bias", *affine("mix_expand", "mix_contract")),
        width="patches must have num_modalities=3 and width dim=8",
        random=True,
    ),
    "TextModulatedExperts of other texts": Case(
        build=lambda device, dtype: text_experts(device, dtype, text_dim=5, mlp_ratio=2, dropout=0),
        inputs=lambda source, batch: text_inputs(source, batch, 5),
        shape=lambda patches, *_: (len(patches), 2, 3 * patches.shape[2], DIM),
        state=(*NETWORKS, "route_weight", "route_bias", *affine("mix_expand", "mix_contract"), "text_proj.weight"),
        width="patches must have num_modalities=3 and width dim=8",
    ),
    "SharedExperts": Case(
        build=lambda device, dtype: sl.SharedExperts(DIM, 4, mlp_ratio=2, dropout=0.3, device=device, dtype=dtype),
        inputs=lambda source, batch: (source.normal(batch, 3, source.size(1, 9), DIM), source.flags(batch, 3)),
        shape=lambda patches, _: (len(patches), 4, 3 * patches.shape[2], DIM),
        state=(*NETWORKS, *affine("router")),
        width="patches must have width dim=8",
        random=True,
    ),
    "ExpertReadout": Case(
        build=lambda device, dtype: sl.ExpertReadout(DIM, num_heads=2, norm=True, device=device, dtype=dtype),
        inputs=lambda source, batch: (
            source.normal(batch, 3, DIM),
            source.normal(batch, 2, 3 * source.size(1, 4), DIM),
            source.flags(batch, 3),
        ),
        shape=lambda globals_, *_: globals_.shape,
        state=(*PROJECTIONS, *affine("norm_globals", "norm_tokens")),
        width="globals must have width dim=8",
    ),
}


FUNCTIONS = {
    "text_similarity": FunctionCase(
        sl.text_similarity, lambda source, batch: text_inputs(source, batch)[:2], dtype=torch.float32
    ),
    "token_gates": FunctionCase(
        sl.token_gates,
        lambda source, batch: (source.normal(batch, source.size(1, 9), DIM), source.normal(4, DIM), source.normal(4)),
        shared=(1, 2),
        dtype=torch.float32,
    ),
    "draw_sentences": FunctionCase(
        lambda sentences: sl.draw_sentences(sentences, 2, p=1.0),
        lambda source, batch: (source.flags(batch, 5),),
        graph=False,  # randomness under vmap has to be allowed by its caller
        smooth=False,
    ),
}
