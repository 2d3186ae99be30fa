"""Layers and functions of Signal."""

import torch
from torch import Tensor

import stmi_layers as sl
from case import DIM, PROJECTIONS, Case, FunctionCase, Inputs, Source, affine

GRID = (5, 4)
SAMPLER = (*affine("mix", "windows"), "offset.weight")


def presence(source: Source, batch: int, modalities: int) -> Tensor:
    present = source.flags(modalities, batch).T.contiguous()
    present[:, source.size(0, modalities - 1)] = True  # a sample has at least one
    return present


def selection_inputs(source: Source, batch: int) -> Inputs:
    modalities, patches = source.size(2, 4), source.size(1, 7)
    tokens = source.normal(batch, modalities, patches + 1, DIM)
    return tokens[:, :, 1:].contiguous(), tokens[:, :, 0].contiguous(), presence(source, batch, modalities)


def interaction_inputs(source: Source, batch: int) -> Inputs:
    patches, class_tokens, present = selection_inputs(source, batch)
    return class_tokens, patches, source.flags(*patches.shape[:3]).float(), present


def alignment_inputs(source: Source, batch: int) -> Inputs:
    modalities = source.size(2, 4)
    patches = source.normal(batch, modalities, source.size(1, 7), DIM)
    return patches, presence(source, batch, modalities), torch.arange(batch) // 2


def local_inputs(source: Source, batch: int) -> Inputs:
    return source.normal(batch, 3, GRID[0] * GRID[1], DIM), presence(source, batch, 3)


def gram_alignment(alignment: sl.GramAlignment, patches: Tensor, present: Tensor, labels: Tensor) -> Tensor:
    features, temperature = patches.mean(dim=2), alignment.temperature
    return sl.gram_alignment_loss(features, temperature, present=present, labels=labels)


def local_alignment(alignment: sl.LocalAlignment, patches: Tensor, present: Tensor) -> Tensor:
    samples = [layer(patches[:, m].unflatten(1, GRID)) for m, layer in enumerate(alignment.sampling)]
    return sl.local_alignment_loss(torch.stack([item.flatten(1, 2) for item in samples], dim=1), present)


def interaction(layer: sl.SelectiveInteraction, class_tokens: Tensor, patches: Tensor, *masks: Tensor) -> Tensor:
    gates, present = masks
    attention = (layer.in_proj_weight, layer.in_proj_bias, layer.out_proj.weight, layer.out_proj.bias, layer.num_heads)
    keep = (present[..., None] & (gates != 0)).flatten(1)
    read = sl.absorbed_cross_attention(class_tokens, patches.flatten(1, 2), *attention, keep=keep)
    tokens = layer.norm_attention(class_tokens + read)
    return torch.where(present[..., None], layer.norm_ffn(tokens + layer.ffn(tokens)), 0.0)


CASES = {
    "TokenSelection": Case(
        build=lambda device, dtype: sl.TokenSelection(DIM, 0.4, device=device, dtype=dtype),
        inputs=selection_inputs,
        shape=lambda patches, *_: patches.shape[:3],
        state=(*affine("query"), "key.weight"),
        width="patches must have width dim=8",
        detached=True,
    ),
    "SelectiveInteraction": Case(
        build=lambda device, dtype: sl.SelectiveInteraction(DIM, num_heads=2, device=device, dtype=dtype),
        inputs=interaction_inputs,
        shape=lambda class_tokens, *_: class_tokens.shape,
        state=(*PROJECTIONS, *affine("norm_attention", "norm_ffn", "ffn.0", "ffn.2")),
        twin=interaction,
        width="class_tokens must have width dim=8",
    ),
    "GramAlignment": Case(
        build=lambda device, dtype: sl.GramAlignment(device=device, dtype=dtype),
        inputs=alignment_inputs,
        shape=lambda *_: (),
        state=("log_excess",),
        twin=gram_alignment,
        per_sample=False,
        half_result=torch.float32,
    ),
    "DeformableSampling": Case(
        build=lambda device, dtype: sl.DeformableSampling(DIM, kernel_size=3, stride=2, device=device, dtype=dtype),
        inputs=lambda source, batch: (source.normal(batch, source.size(3, 7), source.size(3, 7), DIM),),
        shape=lambda tokens: (len(tokens), *((size - 3) // 2 + 1 for size in tokens.shape[1:3]), DIM),
        state=SAMPLER,
        twin=lambda sampling, tokens: sl.sample_tokens(tokens, sampling.positions(tokens)),
        width="tokens must have width dim=8",
    ),
    "LocalAlignment": Case(
        build=lambda device, dtype: sl.LocalAlignment(
            DIM, 3, GRID, kernel_size=3, stride=2, device=device, dtype=dtype
        ),
        inputs=local_inputs,
        shape=lambda *_: (),
        state=tuple(f"sampling.{modality}.{name}" for modality in range(3) for name in SAMPLER),
        twin=local_alignment,
        width="patches must have (modalities, patches, dim) of (3, 20, 8)",
        per_sample=False,
        half_result=torch.float32,
    ),
}


def score_inputs(source: Source, batch: int) -> Inputs:
    modalities = source.size(2, 4)
    return source.normal(batch, modalities, modalities, 5), presence(source, batch, modalities)


def volume_inputs(source: Source, batch: int) -> Inputs:
    modalities = source.size(2, 4)
    return source.normal(batch, modalities, DIM), presence(source, batch, modalities)


def position_inputs(source: Source, batch: int) -> Inputs:
    return 2 * source.normal(batch, 2, 3, 2), sl.reference_positions((8, 12), (2, 3))


FUNCTIONS = {
    "top_tokens": FunctionCase(
        lambda scores: sl.top_tokens(scores, 3),
        lambda source, batch: (source.normal(batch, source.size(1, 9)),),
        smooth=False,
        dtype=torch.bool,
    ),
    "select_across": FunctionCase(
        lambda scores, present: sl.select_across(scores, 2, present=present),
        score_inputs,
        smooth=False,
        dtype=torch.bool,
    ),
    "gram_volume": FunctionCase(
        lambda features, present: sl.gram_volume(features, present=present),
        volume_inputs,
        per_sample=False,
        dtype=torch.float32,
    ),
    "gram_alignment_loss": FunctionCase(
        lambda features, present, labels, temperature: sl.gram_alignment_loss(
            features, temperature, present=present, labels=labels
        ),
        lambda source, batch: (*volume_inputs(source, batch), torch.arange(batch) // 2, torch.tensor(0.5)),
        shared=(3,),
        per_sample=False,
        dtype=torch.float32,
    ),
    "deformable_positions": FunctionCase(
        lambda offsets, reference: sl.deformable_positions(offsets, reference, (8, 12), reach=(4.0, 4.0)),
        position_inputs,
        shared=(1,),
        dtype=torch.float32,
    ),
    "sample_tokens": FunctionCase(
        sl.sample_tokens, lambda source, batch: (source.normal(batch, *GRID, DIM), 2 * source.normal(batch, 2, 3, 2))
    ),
    "local_alignment_loss": FunctionCase(
        sl.local_alignment_loss,
        lambda source, batch: (source.normal(batch, 3, 5, DIM), presence(source, batch, 3)),
        per_sample=False,
        dtype=torch.float32,
    ),
}
