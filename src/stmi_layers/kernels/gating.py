"""Gates that are 0 or 1, with the gradient of a product and without computing it.

Where a patch with gate 0 is hidden from what follows, `patches * gates` would copy all patches to change none.
"""

from typing import Any

import torch
from torch import Tensor


class BinaryGates(torch.autograd.Function):
    r"""The patches as they are; the gradient of a gate is that of $\text{gate} \cdot \text{patch}$.

    The readable twin is `patches * gates[..., None]`, in a context that never reads a patch with gate 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(patches: Tensor, gates: Tensor) -> Tensor:
        """Return the `patches`, (... patches dim); `gates` are (... patches)."""
        return patches.view_as(patches)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, of_patches: Tensor) -> tuple[Tensor, Tensor]:
        patches, gates = ctx.saved_tensors
        # In slices, because one product of all would be the largest tensor of the pass, written to be read once.
        slices = zip(of_patches.chunk(8, dim=-1), patches.chunk(8, dim=-1), strict=True)
        of_gates = torch.stack([(one * other).sum(dim=-1) for one, other in slices]).sum(dim=0)
        return of_patches, of_gates.to(gates.dtype)
