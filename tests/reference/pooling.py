"""Global-patch reduction, one modality and one patch at a time."""

import torch
from torch import Tensor


def reduce_global_patches(
    globals_: Tensor, patches: Tensor, keep: Tensor, present: Tensor, state: dict[str, Tensor], quick: bool
) -> Tensor:
    rows = []
    for b in range(globals_.shape[0]):
        for m in range(globals_.shape[1]):
            if not present[b, m]:
                rows.append(torch.zeros(globals_.shape[2], dtype=torch.float64))
                continue
            kept = [patches[b, m, n] for n in range(patches.shape[2]) if keep[b, m, n]]
            mean = sum(kept) / len(kept) if kept else torch.zeros_like(globals_[b, m])
            row = torch.cat([globals_[b, m], mean])
            if "norm_weight" in state:
                variance = ((row - row.mean()) ** 2).mean()
                row = (row - row.mean()) / (variance + 1e-5).sqrt() * state["norm_weight"][m] + state["norm_bias"][m]
            row = state["weight"][m] @ row + state["bias"][m]
            rows.append(row / (1 + (-1.702 * row).exp()) if quick else row)
    return torch.stack(rows).reshape(globals_.shape)
