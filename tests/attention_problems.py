"""Problems for modulated attention, and its specification in float64 with gradients."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from stmi_layers import modulate_logits, modulated_attention

NAMES = ("result", "query", "key", "value", "alpha", "beta")


def problem(
    tokens: int,
    share: float = 0.4,
    *,
    batch: int = 2,
    heads: int = 2,
    head_dim: int = 8,
    strengths: tuple[float, float] = (0.3, 0.6),
    per_head: bool = False,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> list[Tensor]:
    """Query, key, value, foreground, alpha, beta; the vectors are views of one packed projection, as in a ViT."""
    generator = torch.Generator().manual_seed(seed)
    packed = torch.randn(batch, tokens, 3, heads, head_dim, generator=generator, dtype=torch.float64).to(dtype)
    foreground = torch.rand(batch, tokens, generator=generator) < share
    size = heads if per_head else 1
    alpha, beta = (torch.full((size,), strength, dtype=dtype) for strength in strengths)
    return [*packed.permute(2, 0, 3, 1, 4), foreground, alpha, beta]


def with_gradients(implementation: str, inputs: list[Tensor]) -> list[Tensor]:
    """Result and gradients of query, key, value, alpha and beta; "specification" is eq. 3-8 in float64."""
    leaves = [item.detach().clone().requires_grad_(item.is_floating_point()) for item in inputs]
    if implementation == "specification":
        query, key, value, foreground, alpha, beta = widen(leaves)
        logits = modulate_logits(query @ key.mT / math.sqrt(query.shape[-1]), foreground, alpha, beta)
        result = logits.softmax(dim=-1) @ value
    else:
        result = modulated_attention(*leaves, implementation=implementation)
    learned = [leaf for leaf in leaves if leaf.is_floating_point()]
    return [result.detach(), *torch.autograd.grad(result, learned, incoming(result))]


def incoming(result: Tensor) -> Tensor:
    """Return a gradient of the result: numbers of both signs, the same for every implementation."""
    return torch.linspace(-1, 2, result.numel(), dtype=torch.float64).reshape(result.shape).sin().to(result.dtype)


def plain_strength_gradient(query: Tensor, key: Tensor, value: Tensor, strength: Tensor) -> Tensor:
    """Return the gradient of a strength in torch's own attention with the logits times 1 - strength.

    It is what `alpha` is where all tokens are foreground, and `beta` where none is.
    """
    leaf = strength.detach().clone().requires_grad_()
    result = F.scaled_dot_product_attention(query * (1 - leaf[:, None, None]), key, value)
    return torch.autograd.grad(result, leaf, incoming(result))[0]


def widen(inputs: list[Tensor]) -> list[Tensor]:
    """Return the inputs with vectors and strengths in float64."""
    return [item.double() if item.is_floating_point() else item for item in inputs]


def assert_equal(implementation: str, inputs: list[Tensor], tolerance: float = 1e-9) -> None:
    """Result and gradients of an implementation against the specification, up to the size of each."""
    actual, expected = with_gradients(implementation, inputs), with_gradients("specification", inputs)
    for name, one, other in zip(NAMES, actual, expected, strict=True):
        assert one.isfinite().all(), name
        scale = other.double().abs().max().clamp(min=1.0).item()
        torch.testing.assert_close(
            one.double(), other.double(), rtol=0, atol=tolerance * scale, msg=lambda text, name=name: f"{name}: {text}"
        )


# Ways in which the last axis is not dense.
LAYOUTS = {
    "transposed": lambda tensor: tensor.mT.contiguous().mT,
    "every other": lambda tensor: torch.stack([tensor, tensor], dim=-1).flatten(-2)[..., ::2],
    "expanded": lambda tensor: tensor[..., :1].expand_as(tensor),
}
