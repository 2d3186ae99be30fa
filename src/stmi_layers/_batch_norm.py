"""Batch norm whose statistics leave out absent entries."""

import torch
from torch import Tensor, nn

from stmi_layers._precision import at_least_float32, without_autocast


def batch_norm(norm: nn.BatchNorm1d, rows: Tensor, keep: Tensor | None) -> Tensor:
    """Apply `norm` to `rows` (batch channels); in training, only the entries that `keep` marks True count.

    A channel kept in fewer than two rows has no batch statistics: the channel uses its running statistics and leaves
    them unchanged. A norm over several processes has an attribute `total`, a function that sums over the processes.
    """
    total = getattr(norm, "total", None)
    if norm.training and rows.shape[0] == 1 and total is None:
        rule = "batch must hold at least two samples for batch norm in training"
        raise ValueError(f"{rule}; received 1. Add samples, or call eval() for inference")
    rows = rows.to(torch.promote_types(rows.dtype, norm.weight.dtype))
    # In bfloat16 on a CPU, torch loses a tenth of the gradients in training: the code below works in float32.
    half = rows.dtype.itemsize == 2 and type(norm) is nn.BatchNorm1d
    # Every process has to take part in the sums, also a process whose samples lack nothing.
    if not norm.training or (keep is None and not half and total is None):
        return norm(rows)
    keep = torch.ones_like(rows, dtype=torch.bool) if keep is None else keep
    running_mean, running_var, momentum = norm.running_mean, norm.running_var, norm.momentum
    assert running_mean is not None
    assert running_var is not None
    assert momentum is not None
    with without_autocast(rows):
        values = torch.where(keep, at_least_float32(rows), 0.0)
        over_all = total or (lambda value: value)
        count = over_all(keep.sum(dim=0).to(values.dtype))
        mean = over_all(values.sum(dim=0)) / count.clamp(min=1)
        variance = over_all(torch.where(keep, values - mean, 0.0).square().sum(dim=0)) / count.clamp(min=1)
        before = running_mean.to(mean.dtype), running_var.to(mean.dtype)
        with torch.no_grad():
            step = torch.where(count > 1, momentum, 0.0).to(mean.dtype)
            running_mean.copy_(torch.lerp(before[0], mean, step))
            unbiased = variance * count / (count - 1).clamp(min=1)
            running_var.copy_(torch.lerp(before[1], unbiased, step))
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked.add_(1)
        mean, variance = (torch.where(count > 1, *pair) for pair in zip((mean, variance), before, strict=True))
        return ((values - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias).to(rows.dtype)
