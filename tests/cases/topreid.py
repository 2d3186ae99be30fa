"""Layers of TOP-ReID."""

import stmi_layers as sl
from case import DIM, Case, Inputs, Source, affine


def permutation_inputs(source: Source, batch: int) -> Inputs:
    present = source.flags(batch, 3)
    present[:, source.size(0, 2)] = True
    return source.normal(batch, 3, DIM), source.normal(batch, 3, source.size(1, 9), DIM), present | (batch == 4)


STAGE = (*affine("norm_globals", "out_proj", "norm_ffn", "ffn.0", "ffn.2"), "key_scale")
STAGE = (*STAGE, "query.weight", "key.weight", "value.weight")

CASES = {
    "TokenPermutation": Case(
        build=lambda device, dtype: sl.TokenPermutation(DIM, 3, num_heads=2, device=device, dtype=dtype),
        inputs=permutation_inputs,
        shape=lambda tokens, *_: tokens.shape,
        state=tuple(f"stages.{stage}.{name}" for stage in range(3) for name in STAGE),
        width="globals must have width dim=8",
    ),
}
