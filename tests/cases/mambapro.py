"""Layers of MambaPro that adapt a frozen tower."""

import stmi_layers as sl
from case import DIM, Case, affine

CASES = {
    "ParallelAdapter": Case(
        build=lambda device, dtype: sl.ParallelAdapter(DIM, zero_init=False, device=device, dtype=dtype),
        inputs=lambda source, batch: (source.normal(batch, source.size(1, 5), DIM),),
        shape=lambda tokens: tokens.shape,
        state=affine("expand", "project"),
        width="tokens must have width dim=8",
    ),
    "ResidualPrompts": Case(
        build=lambda device, dtype: sl.ResidualPrompts(DIM, 2, num_prompts=3, std=1.0, device=device, dtype=dtype),
        inputs=lambda source, batch: (source.normal(batch, 2, 3, DIM),),
        shape=lambda carried: (len(carried), 2, 6, DIM),
        state=(
            "prompts",
            *(
                name
                for owner in ("foreign.0", "foreign.1", "carry")
                for name in affine(f"{owner}.expand", f"{owner}.project")
            ),
        ),
        width="carried must have num_modalities, num_prompts and dim=(2, 3, 8)",
    ),
}
