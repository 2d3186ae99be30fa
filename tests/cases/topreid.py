"""Layers and functions of TOP-ReID."""

import torch

import stmi_layers as sl
from case import DIM, Case, FunctionCase, Inputs, Source, affine


def permutation_inputs(source: Source, batch: int) -> Inputs:
    present = source.flags(batch, 3)
    present[:, source.size(0, 2)] = True
    return source.normal(batch, 3, DIM), source.normal(batch, 3, source.size(1, 9), DIM), present | (batch == 4)


def gappy_inputs(source: Source, batch: int) -> Inputs:
    # The samples lack different modalities, so that every pair is needed somewhere.
    lost = (torch.arange(batch) + source.size(0, 1)) % 2
    return source.normal(batch, 2, source.size(1, 5), DIM), torch.arange(2) != lost[:, None]


STAGE = (*affine("norm_globals", "out_proj", "norm_ffn", "ffn.0", "ffn.2"), "key_scale")
STAGE = (*STAGE, "query.weight", "key.weight", "value.weight")
BLOCK = (*affine("norm_attention", "out_proj", "norm_ffn", "ffn.0", "ffn.2"), "in_proj_weight")

CASES = {
    "TokenPermutation": Case(
        build=lambda device, dtype: sl.TokenPermutation(DIM, 3, num_heads=2, device=device, dtype=dtype),
        inputs=permutation_inputs,
        shape=lambda tokens, *_: tokens.shape,
        state=tuple(f"stages.{stage}.{name}" for stage in range(3) for name in STAGE),
        width="globals must have width dim=8",
    ),
    "CrossModalReconstruction": Case(
        build=lambda device, dtype: sl.CrossModalReconstruction(
            DIM, 2, num_heads=2, depth=2, mlp_ratio=2.0, device=device, dtype=dtype
        ),
        inputs=gappy_inputs,
        shape=lambda tokens, _: tokens.shape,
        state=tuple(
            f"chains.{pair}.{block}.{name}" for pair in ("0_to_1", "1_to_0") for block in (0, 1) for name in BLOCK
        ),
        width="tokens must have width dim=8",
    ),
}


def readout_inputs(source: Source, batch: int) -> Inputs:
    weights = (source.normal(DIM, DIM) / DIM**0.5 for _ in range(3))
    return source.normal(batch, 3, DIM), source.normal(batch, 3, source.size(1, 6), DIM), *weights


FUNCTIONS = {
    "cyclic_readout": FunctionCase(
        lambda *inputs: sl.cyclic_readout(*inputs, num_heads=2), readout_inputs, shared=(2, 3, 4)
    ),
    "reconstruction_loss": FunctionCase(
        sl.reconstruction_loss,
        lambda source, batch: (source.normal(batch, 5, DIM), source.normal(batch, 5, DIM), source.flags(batch)),
        per_sample=False,
        dtype=torch.float32,
    ),
}
