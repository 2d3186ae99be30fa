"""Batch norms with statistics over the samples of all processes, on every device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from stmi_layers._precision import at_least_float32
from stmi_layers.training.distributed import num_processes


class _Sum(torch.autograd.Function):
    """Sum over all processes; the gradient of a summand is the sum of all gradients."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class _Synchronised(nn.modules.batchnorm._BatchNorm):
    """Forward pass of a synchronised norm; all processes must call it, even without any samples.

    `SyncBatchNorm` of torch runs on GPUs only. A layer that computes statistics itself, because some of its rows are
    absent, sums them by `total`.
    """

    total = staticmethod(_Sum.apply)

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        wide = at_least_float32(input).movedim(1, -1)
        rows = wide.flatten(0, -2)
        count = torch.full((1,), float(len(rows)), device=rows.device, dtype=rows.dtype)
        total = _Sum.apply(torch.cat([rows.sum(dim=0), count]))
        count = total[-1].detach()
        if not input.is_cuda and count == 1:
            raise ValueError(f"{type(self).__bases__[1].__name__} must see at least 2 values in training; received 1")
        mean = total[:-1] / count.clamp(min=1)
        centred = wide - mean
        variance = _Sum.apply(centred.flatten(0, -2).square().sum(dim=0)) / count.clamp(min=1)
        if self.track_running_stats:
            self._follow(mean.detach(), variance.detach(), count)
        result = centred * (variance + self.eps).rsqrt()
        if self.affine:
            result = result * self.weight + self.bias
        return result.movedim(-1, 1).to(input.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics, with the unbiased variance as torch does."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = 1.0 / self.num_batches_tracked.to(mean.dtype) if self.momentum is None else self.momentum
        # Without a sample in any process the statistics stay as they are.
        share = (count > 0).to(mean.dtype) * share
        unbiased = variance * (count / (count - 1).clamp(min=1))
        self.running_mean.copy_((1 - share) * self.running_mean + share * mean)
        self.running_var.copy_((1 - share) * self.running_var + share * unbiased)


class SynchronisedBatchNorm1d(_Synchronised, nn.BatchNorm1d):
    """`BatchNorm1d` over the samples of all processes."""


class SynchronisedBatchNorm2d(_Synchronised, nn.BatchNorm2d):
    """`BatchNorm2d` over the samples of all processes."""


class SynchronisedBatchNorm3d(_Synchronised, nn.BatchNorm3d):
    """`BatchNorm3d` over the samples of all processes."""


KINDS: dict[type, type] = {
    nn.BatchNorm1d: SynchronisedBatchNorm1d,
    nn.BatchNorm2d: SynchronisedBatchNorm2d,
    nn.BatchNorm3d: SynchronisedBatchNorm3d,
}


@contextmanager
def synchronised_norms(model: nn.Module) -> Iterator[None]:
    """Let the batch norms in `model` see the samples of all processes until the end of the block.

    Only the class of the modules changes, and changes back: parameters and their names stay. With one process
    nothing happens.
    """
    chosen = [module for module in model.modules() if type(module) in KINDS] if num_processes() > 1 else []
    before = [(module, type(module)) for module in chosen]
    for module, kind in before:
        module.__class__ = KINDS[kind]
    try:
        yield
    finally:
        for module, kind in before:
            module.__class__ = kind
