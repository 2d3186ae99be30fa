"""Checks that the tests of several layers share."""

from typing import TypeVar

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", bound=nn.Module)


def randomise(layer: Layer) -> Layer:
    """Set every parameter at random, so that none can hide behind its initial value."""
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return layer


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    """The result, and the gradients of a weighted sum of it."""
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves, materialize_grads=True)]


def assert_inert(layer: nn.Module, clean: tuple, disturbed: tuple, **options) -> None:
    """`disturbed` inputs, which differ where nothing should be read, change no value and no gradient."""
    results = []
    for inputs in (clean, disturbed):
        leaves = [item.detach().requires_grad_() for item in inputs if item.is_floating_point()]
        floats = iter(leaves)
        arguments = [next(floats) if item.is_floating_point() else item for item in inputs]
        results.append(with_gradients(layer(*arguments, **options), [*leaves, *layer.parameters()]))
    for expected, actual in zip(*results, strict=True):
        assert torch.equal(actual, expected)
        assert actual.isfinite().all()
