"""Adapters and prompts of a frozen tower: against their equations, and by their laws."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reference
from reference.deformable_readout import gelu
from stmi_layers.adapters import AsymmetricAdapter, ParallelAdapter, ResidualPrompts


def at_random(layer: Any) -> Any:
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return layer


def quick_gelu(vector: Tensor) -> Tensor:
    return torch.stack([number / (1 + (-1.702 * number).exp()) for number in vector])


def two_maps(layer: ParallelAdapter, vector: Tensor, activation=quick_gelu) -> Tensor:
    hidden = activation(layer.expand.weight @ vector + layer.expand.bias)
    return layer.project.weight @ hidden + layer.project.bias


@pytest.mark.parametrize(("activation", "function"), [("quick_gelu", quick_gelu), ("gelu", gelu)])
def test_parallel_adapter_matches_the_equation(activation, function):
    layer = at_random(ParallelAdapter(3, hidden=4, activation=activation, dtype=torch.float64))
    tokens = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    expected = torch.stack([two_maps(layer, token, function) for token in tokens.flatten(0, 1)]).reshape(2, 3, 3)
    torch.testing.assert_close(layer(tokens), expected)
    assert torch.autograd.gradcheck(layer, (tokens,))


def test_parallel_adapter_starts_as_nothing_yet_learns():
    layer, tokens = ParallelAdapter(8), torch.randn(2, 5, 8)
    assert layer.hidden == 16
    assert not layer(tokens).any()
    layer(tokens).sum().backward()
    assert layer.project.weight.grad.any()
    released = ParallelAdapter(64, zero_init=False)
    assert released(torch.randn(1, 2, 64)).any()
    for linear in (released.expand, released.project):
        assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
        assert not linear.bias.any()


@pytest.mark.parametrize("dim", [3, 5])
def test_asymmetric_adapter_matches_the_equation(dim):
    layer = at_random(AsymmetricAdapter(3, dim, hidden=4, dtype=torch.float64))
    features = torch.randn(2, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = []
    for vector in features.flatten(0, 1):
        normed = reference.layer_norm(vector, layer.norm.weight, layer.norm.bias)
        mapped = layer.project.weight @ gelu(layer.expand.weight @ normed + layer.expand.bias) + layer.project.bias
        expected.append(mapped + vector if dim == 3 else mapped)
    torch.testing.assert_close(layer(features), torch.stack(expected).reshape(2, 2, dim))
    assert torch.autograd.gradcheck(layer, (features,))


def expected_prompts(layer: ResidualPrompts, carried: Tensor | None, batch: int) -> Tensor:
    result = []
    for b in range(batch):
        for m in range(layer.num_modalities):
            for k in range(layer.num_modalities):
                for n in range(layer.num_prompts):
                    prompt = layer.prompts[k, n]
                    if k != m:
                        result.append(prompt + two_maps(layer.foreign[k], prompt))
                    elif carried is None:
                        result.append(prompt)
                    else:
                        result.append(carried[b, m, n] + two_maps(layer.carry, carried[b, m, n]) + prompt)
    slots = layer.num_modalities * layer.num_prompts
    return torch.stack(result).reshape(batch, layer.num_modalities, slots, layer.dim)


@pytest.mark.parametrize("modalities", [1, 2, 4])
def test_prompts_match_the_equations(modalities):
    layer = at_random(ResidualPrompts(3, modalities, num_prompts=2, hidden=4, dtype=torch.float64))
    carried = torch.randn(2, modalities, 2, 3, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(layer(carried), expected_prompts(layer, carried, 2))
    torch.testing.assert_close(layer(), expected_prompts(layer, None, 1))
    assert torch.autograd.gradcheck(layer, (carried,))


def test_images_do_not_meet():
    layer = at_random(ResidualPrompts(4, 2))
    carried = torch.randn(3, 2, 4, 4)
    changed = carried.clone()
    changed[1, 0] = torch.nan
    before, after = layer(carried), layer(changed)
    assert torch.equal(before[[0, 2]], after[[0, 2]])
    assert torch.equal(before[1, 1], after[1, 1])


def test_prompts_that_start_alike_stay_alike():
    """The reason for random initial prompts: nothing tells equal ones apart, not even attention."""

    def gradient(std: float) -> Tensor:
        torch.manual_seed(0)
        layer, attention = ResidualPrompts(8, 2, std=std), nn.MultiheadAttention(8, 2, batch_first=True)
        sequence = torch.cat([layer()[0], torch.randn(2, 5, 8)], dim=1)
        attention(sequence, sequence, sequence)[0].square().sum().backward()
        assert layer.prompts.grad is not None
        return layer.prompts.grad

    alike, apart = gradient(0.0), gradient(0.02)
    torch.testing.assert_close(alike, alike[:, :1].expand_as(alike), rtol=1e-4, atol=1e-6)
    assert (apart - apart[:, :1]).abs().max() > 1e-3 * apart.abs().max()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ParallelAdapter(0), "dim must be at least 1; received 0"),
        (lambda: ParallelAdapter(4, hidden=0), "hidden must be at least 1; received 0"),
        (
            lambda: ParallelAdapter(4, activation="relu"),
            "activation must be one of 'quick_gelu', 'gelu'; received 'relu'",
        ),
        (lambda: AsymmetricAdapter(0, 4), "in_dim must be at least 1; received 0"),
        (lambda: ResidualPrompts(4, 0), "num_modalities must be at least 1; received 0"),
        (lambda: ResidualPrompts(4, 2, num_prompts=0), "num_prompts must be at least 1; received 0"),
        (lambda: ResidualPrompts(4, 2, std=-1.0), "std must be at least 0; received -1.0"),
        (
            lambda: ResidualPrompts(4, 2, carries=False)(torch.zeros(1, 2, 4, 4)),
            r"carried must be None with carries=False; received shape .* Build the layer with carries=True",
        ),
        (
            lambda: ResidualPrompts(4, 2)(torch.zeros(1, 3, 4, 4)),
            r"carried must have num_modalities, num_prompts and dim=\(2, 4, 4\); received shape \(1, 3, 4, 4\)",
        ),
    ],
)
def test_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
