"""Reconstruction: against loops over single tokens, against the released arrays, and by the laws it obeys."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.topreid.released import released_reconstruction
from reference import reconstruction as reference
from stmi_layers import CrossModalReconstruction, reconstruction_loss
from vectors import MODALITIES, every, load, meta


def layer(modalities: int = 3, dim: int = 4, heads: int = 2, depth: int = 1) -> CrossModalReconstruction:
    """With every parameter at random, so that none can hide behind its initial value."""
    reconstruction = CrossModalReconstruction(
        dim, modalities, num_heads=heads, depth=depth, mlp_ratio=1.5, dtype=torch.float64
    )
    for parameter in reconstruction.parameters():
        nn.init.uniform_(parameter, -0.9, 0.9)
    return reconstruction


def inputs(batch: int = 2, modalities: int = 3, tokens: int = 3, dim: int = 4) -> Tensor:
    return torch.randn(batch, modalities, tokens, dim, dtype=torch.float64, requires_grad=True)


def gaps(batch: int, modalities: int, seed: int) -> Tensor:
    return torch.rand(batch, modalities, generator=torch.Generator().manual_seed(seed)) < 0.6


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    total = (result * weights).sum() + 0 * sum(leaf.sum() for leaf in leaves if leaf.isfinite().all())
    return [result.detach(), *torch.autograd.grad(total, leaves, materialize_grads=True)]


@settings(max_examples=settings().max_examples // 2)
@given(st.integers(2, 3), st.integers(1, 2), st.integers(0, 2**32 - 1))
def test_filling_matches_the_loops(modalities, depth, seed):
    reconstruction, tokens = layer(modalities, depth=depth), inputs(2, modalities)
    present = gaps(2, modalities, seed)
    leaves = [tokens, *reconstruction.parameters()]
    expected = reference.fill(tokens, present, dict(reconstruction.named_parameters()), 2, depth)
    actual = reconstruction(tokens, present)
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves))


@settings(max_examples=settings().max_examples // 2)
@given(st.integers(2, 3), st.integers(1, 2), st.integers(0, 2**32 - 1), st.booleans(), st.booleans())
def test_loss_matches_the_loops(modalities, depth, seed, complete, detached):
    reconstruction, tokens = layer(modalities, depth=depth), inputs(2, modalities)
    present = gaps(2, modalities, seed) | complete
    leaves = [tokens, *reconstruction.parameters()]
    state = dict(reconstruction.named_parameters())
    expected = reference.loss(tokens, present, state, 2, depth, detached)
    actual = reconstruction.loss(tokens, None if complete else present, detach_targets=detached)
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves))


@every("topreid_crm_*.npz")
def test_released_arrays(path):
    found = load(path)
    settings = meta(path)
    state = {name[6:]: value.double() for name, value in found.items() if name.startswith("param.")}
    given = [found[f"in.{name}"].double().requires_grad_() for name in MODALITIES]
    tokens = torch.stack(given, dim=1)
    reconstruction = CrossModalReconstruction(
        tokens.shape[-1], 3, num_heads=settings["heads"], depth=settings["depth"], dtype=torch.float64
    )
    reconstruction.load_state_dict(released_reconstruction(state))

    close = {"rtol": 0, "atol": 1e-10}
    loss = reconstruction.loss(tokens)
    torch.testing.assert_close(loss, found["train.out.loss"], **close)
    expected = [found[f"train.grad.in.{name}"] for name in MODALITIES]
    torch.testing.assert_close(list(torch.autograd.grad(loss, given, retain_graph=True)), expected, **close)
    outputs = {
        f"{source}_to_{target}": reconstruction.translate(tokens[:, m], m, k)
        for m, source in enumerate(MODALITIES)
        for k, target in enumerate(MODALITIES)
        if m != k
    }
    for name, output in outputs.items():
        torch.testing.assert_close(output, found[f"eval.out.{name}"], **close)
    total = sum((output * found[f"eval.cot.{name}"]).sum() for name, output in outputs.items())
    expected = [found[f"eval.grad.in.{name}"] for name in MODALITIES]
    torch.testing.assert_close(list(torch.autograd.grad(total, given)), expected, **close)

    missing = [name.removeprefix("eval.missing_") for name in found if name.startswith("eval.missing_")]
    assert len(missing) == 9
    for name in missing:
        lost, made = name.split(".")
        present = torch.tensor([part not in lost.split("_") for part in MODALITIES]).expand(len(tokens), 3)
        filled = reconstruction(tokens, present)[:, MODALITIES.index(made)]
        torch.testing.assert_close(filled, found[f"eval.missing_{name}"], **close)


def test_gradcheck():
    reconstruction, tokens = layer(2, dim=2, heads=1), inputs(2, 2, 2, 2)
    present = torch.tensor([[True, True], [True, False]])
    assert torch.autograd.gradcheck(lambda tokens: reconstruction(tokens, present), tokens)
    assert torch.autograd.gradcheck(lambda tokens: reconstruction.loss(tokens, present), tokens)


@given(st.integers(2, 3), st.integers(0, 2**32 - 1))
def test_absent_slots_change_nothing(modalities, seed):
    reconstruction, tokens = layer(modalities), inputs(3, modalities)
    present = gaps(3, modalities, seed)
    broken = torch.where(present[..., None, None], tokens.detach(), torch.nan).requires_grad_()
    for function in (reconstruction, reconstruction.loss):
        expected = with_gradients(function(tokens, present), [tokens, *reconstruction.parameters()])
        actual = with_gradients(function(broken, present), [broken, *reconstruction.parameters()])
        torch.testing.assert_close(actual, expected, rtol=0, atol=0)


def test_what_is_present_comes_back_and_costs_nothing():
    reconstruction, tokens = layer(), inputs()
    assert reconstruction(tokens) is tokens
    assert torch.equal(reconstruction(tokens, torch.ones(2, 3, dtype=torch.bool)), tokens)
    present = torch.tensor([[True, False, True], [True, True, True]])
    filled = reconstruction(tokens, present)
    assert torch.equal(filled[present], tokens[present])
    assert filled[0, 1].any()


def test_only_what_is_missing_is_computed(monkeypatch):
    """On a CPU: one block per pair, on the samples that need it."""
    reconstruction, tokens = layer(), inputs(batch=4)
    sizes = {}
    for name, chain in reconstruction.chains.items():
        chain.register_forward_pre_hook(lambda _, arguments, name=name: sizes.update([(name, len(arguments[0]))]))
    present = torch.ones(4, 3, dtype=torch.bool)
    present[1, 0] = present[2, 0] = present[2, 1] = False
    reconstruction(tokens, present)
    assert sizes == {"0_to_1": 0, "0_to_2": 0, "1_to_0": 1, "1_to_2": 0, "2_to_0": 2, "2_to_1": 1}
    reconstruction.loss(tokens, present)
    assert sizes == {"0_to_1": 2, "0_to_2": 2, "1_to_0": 2, "1_to_2": 3, "2_to_0": 2, "2_to_1": 3}


def test_dense_form_is_the_form_that_counts():
    """A captured graph computes every pair for all samples: the same values and gradients."""
    reconstruction, tokens = layer(), inputs(batch=3)
    present = torch.tensor([[True, False, True], [True, True, True], [False, False, True]])
    leaves = [tokens, *reconstruction.parameters()]
    for function in (reconstruction.forward, reconstruction.loss):
        captured = torch.compile(function, fullgraph=True, backend="eager")
        torch.testing.assert_close(
            with_gradients(captured(tokens, present), leaves), with_gradients(function(tokens, present), leaves)
        )


def test_blocks_that_change_nothing_leave_the_distances():
    """With zero maps behind attention and activation a block is the identity: every pair is counted twice."""
    reconstruction, tokens = layer(), inputs().detach()
    for name, parameter in reconstruction.named_parameters():
        if "out_proj" in name or "ffn.2" in name:
            nn.init.zeros_(parameter)
    pairs = [(0, 1), (0, 2), (1, 2)]
    expected = 2 * sum((tokens[:, m] - tokens[:, k]).square().mean() for m, k in pairs)
    torch.testing.assert_close(reconstruction.loss(tokens), expected)
    filled = reconstruction(tokens, torch.tensor([[True, True, False]] * 2))
    torch.testing.assert_close(filled[:, 2], (tokens[:, 0] + tokens[:, 1]) / 2)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_loss_of_half_precision_is_float32(dtype):
    tokens = torch.full((2, 3, 64, 64), 100.0, dtype=dtype)  # their squares do not fit in float16
    loss = reconstruction_loss(tokens[:, 0], -2 * tokens[:, 1])
    assert loss.dtype == torch.float32
    assert loss == 90000
    assert layer().to(dtype).loss(inputs().to(dtype)).dtype == torch.float32


def test_nothing_to_count_is_zero():
    reconstruction, tokens = layer(), inputs()
    present = torch.tensor([[True, False, False], [False, False, False]])
    loss = reconstruction.loss(tokens, present)
    assert loss == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, [tokens, *reconstruction.parameters()]))
    assert reconstruction_loss(tokens[:, 0], tokens[:, 1], present[:, 1]) == 0
    assert not reconstruction(tokens, present)[1].any()


def test_an_empty_batch():
    reconstruction, tokens = layer(), inputs(batch=0)
    present = torch.ones(0, 3, dtype=torch.bool)
    assert reconstruction(tokens, present).shape == tokens.shape
    assert reconstruction.loss(tokens) == 0
    assert reconstruction.loss(tokens, present) == 0


def test_refusals():
    with pytest.raises(ValueError, match="num_heads must divide dim; received dim=6, num_heads=4"):
        CrossModalReconstruction(6, 3, num_heads=4)
    with pytest.raises(ValueError, match="num_modalities must be at least 2; received 1"):
        CrossModalReconstruction(8, 1)
    with pytest.raises(ValueError, match="depth must be at least 1; received 0"):
        CrossModalReconstruction(8, 3, depth=0)
    with pytest.raises(ValueError, match=r"mlp_ratio \* dim must be at least 1; received mlp_ratio=0.1, dim=8"):
        CrossModalReconstruction(8, 3, mlp_ratio=0.1)
    reconstruction, tokens = layer(), inputs()
    for function in (reconstruction, reconstruction.loss):
        with pytest.raises(ValueError, match="tokens must have width dim=4 and num_modalities=3; received shape"):
            function(tokens[:, :2])
    for pair in [(1, 1), (0, 3), (-1, 0)]:
        with pytest.raises(
            ValueError, match=f"two different modalities below num_modalities=3; received source={pair[0]}"
        ):
            reconstruction.translate(tokens[:, 0], *pair)
