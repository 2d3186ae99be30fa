"""Layers of IDEA."""

import torch
from torch import Tensor

import stmi_layers as sl
from case import DIM, PROJECTIONS, Case, FunctionCase, Inputs, Source, affine


def map_inputs(source: Source, batch: int) -> Inputs:
    present, asked = source.flags(batch, 2), source.flags(batch, 3)
    present[:, source.size(0, 1)] = asked[:, 1] = True
    return source.normal(batch, 3, DIM), source.normal(batch, 2, 24, DIM), present, asked


def network(index: int) -> tuple[str, ...]:
    name = f"networks.{index}"
    return (*affine(f"{name}.project", f"{name}.window"), f"{name}.point.weight")


def places(source: Source, batch: int) -> Inputs:
    """Positions on both sides of the border."""
    vectors = source.normal(batch, source.size(1, 4), DIM), source.normal(batch, 2, 6, DIM)
    weights = source.normal(3 * DIM, DIM) / DIM, source.normal(3 * DIM), source.normal(DIM, DIM), source.normal(DIM)
    return (*vectors, 1 + source.normal(batch, 2, 5, 2), source.flags(batch, 2), *weights)


def read(queries: Tensor, patches: Tensor, positions: Tensor, present: Tensor, *weights: Tensor) -> Tensor:
    return sl.sampled_cross_attention(queries, patches, positions, (2, 3), *weights, num_heads=2, present=present)


def captions(source: Source, batch: int) -> Inputs:
    length = source.size(3, 9)
    return source.normal(batch, length, DIM), torch.arange(batch * length).reshape(batch, length) * 7 % 5


CASES = {
    f"DeformableReadout, {offsets}": Case(
        build=lambda device, dtype, offsets=offsets: sl.DeformableReadout(
            DIM, 2, (6, 4), offsets=offsets, num_heads=2, device=device, dtype=dtype
        ),
        inputs=map_inputs,
        shape=lambda queries, *_: queries.shape,
        state=(*PROJECTIONS, *network(0), *(() if offsets == "shared" else network(1))),
        width="queries must have width dim=8",
    )
    for offsets in ("shared", "separate", "diagonal")
} | {
    "CaptionPrompts": Case(
        build=lambda device, dtype: sl.CaptionPrompts(2, DIM, first=1, device=device, dtype=dtype),
        inputs=lambda source, batch: (source.normal(batch, source.size(3, 9), DIM),),
        shape=lambda embeddings: embeddings.shape,
        state=("prompts",),
        width="embeddings must have width dim=8",
    ),
    "TextInversion": Case(
        build=lambda device, dtype: sl.TextInversion(DIM, 5, dropout=0.3, device=device, dtype=dtype),
        inputs=lambda source, batch: (source.normal(batch, DIM), source.flags(batch)),
        shape=lambda text, _: (len(text), 5),
        state=(*affine("expand", "project"), "position"),
        width="text must have width text_dim=8",
        random=True,
    ),
}

FUNCTIONS = {
    "sampled_cross_attention": FunctionCase(read, places, shared=(4, 5, 6, 7)),
    "prompted_text_feature": FunctionCase(
        lambda tokens, ids: sl.prompted_text_feature(tokens, ids, 2, first=1), captions
    ),
}
