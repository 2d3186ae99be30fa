"""Layers for retrieval by image, text and mask: our readings of FusionSegReID / PS-ReID."""

import torch
from torch import Tensor

import stmi_layers as sl
from case import DIM, PROJECTIONS, Case, FunctionCase, Inputs, Source, affine


def map_inputs(source: Source, batch: int) -> Inputs:
    modalities = source.size(1, 3)
    present = source.flags(batch, modalities)
    patches = source.normal(batch, modalities, 16, DIM)
    return source.normal(batch, source.size(1, 4), DIM), patches, source.flags(batch, modalities, 16), present


def pairs(source: Source, batch: int) -> Inputs:
    present = torch.arange(batch) != 1
    return source.normal(batch, DIM), source.normal(batch, DIM), torch.arange(batch) % 2, present


def identity_tokens(source: Source, batch: int) -> Inputs:
    tokens = source.size(1, 3)
    shapes = (batch, tokens, DIM), (batch, tokens, DIM), (batch, 6, DIM)
    queries, targets, patches = (source.normal(*shape) for shape in shapes)
    return queries, targets, torch.arange(batch) % 2, patches, source.flags(batch, 6), source.flags(batch, tokens)


def pixels(source: Source, batch: int) -> Inputs:
    height, width = source.size(1, 5), source.size(1, 5)
    return source.normal(batch, height, width), source.flags(batch, height, width), torch.arange(batch) != 1


def coupled(source: Source, batch: int) -> Inputs:
    vectors = source.normal(batch, source.size(1, 3), DIM), source.normal(batch, 6, DIM)
    return (*vectors, source.flags(batch, 6), torch.arange(batch) != 1)


def token_identity(queries: Tensor, targets: Tensor, labels: Tensor, _: Tensor, __: Tensor, present: Tensor) -> Tensor:
    return sl.token_identity_loss(queries, targets, labels, labels, temperature=0.5, present=present)


CASES = {
    "SegmentationGuidedPooling": Case(
        build=lambda device, dtype: sl.SegmentationGuidedPooling(
            DIM, (4, 4), num_heads=2, beta=0.5, device=device, dtype=dtype
        ),
        inputs=map_inputs,
        shape=lambda queries, *_: queries.shape,
        state=(*PROJECTIONS, "log_beta"),
        width="queries must have width dim=8",
    ),
    "ImageTextAlignment": Case(
        build=lambda device, dtype: sl.ImageTextAlignment(device=device, dtype=dtype),
        inputs=pairs,
        shape=lambda *_: (),
        state=("log_temperature",),
        twin=lambda layer, image, text, labels, present: sl.image_text_alignment_loss(
            image, text, labels, temperature=layer.log_temperature.exp(), present=present
        ),
        per_sample=False,
        half_result=torch.float32,
    ),
    "TokenIdentityLoss": Case(
        build=lambda device, dtype: sl.TokenIdentityLoss(0.1, coupling=0.5),
        inputs=identity_tokens,
        shape=lambda *_: (),
        twin=lambda _, queries, targets, labels, patches, mask, present: (
            sl.token_identity_loss(queries, targets, labels, labels, temperature=0.1, present=present)
            + 0.5 * sl.mask_coupling_loss(targets, patches, mask)
        ),
        per_sample=False,
        half_result=torch.float32,
    ),
    "AsymmetricAdapter": Case(
        build=lambda device, dtype: sl.AsymmetricAdapter(DIM, 5, device=device, dtype=dtype),
        inputs=lambda source, batch: (source.normal(batch, source.size(1, 5), DIM),),
        shape=lambda features: (*features.shape[:2], 5),
        state=affine("norm", "expand", "project"),
        width="features must have width in_dim=8",
    ),
    "AsymmetricAdapter with a residual": Case(
        build=lambda device, dtype: sl.AsymmetricAdapter(DIM, DIM, hidden=5, device=device, dtype=dtype),
        inputs=lambda source, batch: (source.normal(batch, source.size(1, 5), DIM),),
        shape=lambda features: features.shape,
        state=affine("norm", "expand", "project"),
        width="features must have width in_dim=8",
    ),
}

FUNCTIONS = {
    "image_text_alignment_loss": FunctionCase(
        lambda image, text, labels, present: sl.image_text_alignment_loss(
            image, text, labels, temperature=0.5, present=present
        ),
        pairs,
        per_sample=False,
        dtype=torch.float32,
    ),
    "token_identity_loss": FunctionCase(token_identity, identity_tokens, per_sample=False, dtype=torch.float32),
    "mask_loss": FunctionCase(
        lambda logits, mask, present: sl.mask_loss(logits, mask, present=present),
        pixels,
        per_sample=False,
        dtype=torch.float32,
    ),
    "mask_coupling_loss": FunctionCase(
        lambda tokens, patches, mask, present: sl.mask_coupling_loss(tokens, patches, mask, present=present),
        coupled,
        per_sample=False,
        dtype=torch.float32,
    ),
    "mask_pooled_cells": FunctionCase(
        lambda patches, mask: sl.mask_pooled_cells(patches, mask, (4, 4), 2)[0],
        lambda source, batch: (source.normal(batch, 16, DIM), source.flags(batch, 16)),
    ),
}
