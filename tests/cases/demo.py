"""Layers of DeMo."""

import stmi_layers as sl
from case import DIM, Case, Inputs, Source


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
}
