"""Token permutation: against loops over single tokens, against the released arrays, and by the laws it obeys."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.topreid.released import released_permutation
from reference.token_permutation import permuted_tokens
from stmi_layers import TokenPermutation, cyclic_readout
from vectors import MODALITIES, every, load, meta


def layer(modalities: int = 3, dim: int = 6, heads: int = 2) -> TokenPermutation:
    """With every parameter at random, so that none can hide behind its initial value."""
    permutation = TokenPermutation(dim, modalities, num_heads=heads, mlp_ratio=1.5, dtype=torch.float64)
    for parameter in permutation.parameters():
        nn.init.uniform_(parameter, -0.9, 0.9)
    return permutation


def inputs(batch: int = 2, modalities: int = 3, patches: int = 4, dim: int = 6) -> tuple[Tensor, Tensor]:
    tokens = torch.randn(batch, modalities, patches + 1, dim, dtype=torch.float64)
    return tokens[:, :, 0].clone().requires_grad_(), tokens[:, :, 1:].clone().requires_grad_()


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    total = (result * weights).sum() + 0 * sum(leaf.sum() for leaf in leaves if leaf.isfinite().all())
    return [result.detach(), *torch.autograd.grad(total, leaves, materialize_grads=True)]


def gaps(batch: int, modalities: int, seed: int) -> Tensor:
    return torch.rand(batch, modalities, generator=torch.Generator().manual_seed(seed)) < 0.6


@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 2**32 - 1), st.booleans())
def test_layer_matches_the_loops(modalities, patches, seed, complete):
    permutation, (tokens, context) = layer(modalities), inputs(2, modalities, patches)
    present = gaps(2, modalities, seed) | complete
    state = dict(permutation.named_parameters())
    leaves = [tokens, context, *state.values()]
    actual = permutation(tokens, context, None if complete else present)
    expected = permuted_tokens(tokens, context, present, state, 2)[-1]
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves))


@given(st.integers(1, 4), st.integers(-4, 4), st.integers(0, 2**32 - 1))
def test_readout_is_the_attention_of_torch(modalities, shift, seed):
    generator = torch.Generator().manual_seed(seed)
    queries, *weights = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for n in (2 * modalities, 6, 6, 6))
    queries = queries.reshape(2, modalities, 6)
    patches = torch.randn(2, modalities, 5, 6, generator=generator, dtype=torch.float64)
    leaves = [leaf.requires_grad_() for leaf in (queries, patches, *weights)]
    expected = []
    for m in range(modalities):
        read = patches[:, (m + shift) % modalities]
        parts = [queries[:, m : m + 1], F.layer_norm(read, (6,)), read]
        heads = (F.linear(*pair).unflatten(-1, (2, 3)).transpose(1, 2) for pair in zip(parts, weights, strict=True))
        expected.append(F.scaled_dot_product_attention(*heads).flatten(1))
    actual = cyclic_readout(queries, patches, *weights, num_heads=2, shift=shift)
    torch.testing.assert_close(
        with_gradients(actual, leaves), with_gradients(torch.stack(expected, dim=1), leaves), rtol=1e-8, atol=1e-9
    )


@every("topreid_rotation_*.npz", "topreid_tpm_*.npz")
def test_released_arrays(path):
    found = load(path)
    state = {name[6:]: value.double() for name, value in found.items() if name.startswith("param.")}
    if "in.query" in found:  # one rotation block
        given = [found["in.query"][:, None, None], found["in.patches"][:, None]]
        given = [torch.cat(given, dim=2).double().requires_grad_()]
        expected = [torch.cat([found["eval.grad.in.query"][:, None], found["eval.grad.in.patches"]], dim=1)]
    else:
        given = [found[f"in.{name}"].double().requires_grad_() for name in MODALITIES]
        expected = [found[f"eval.grad.in.{name}"] for name in MODALITIES]
    tokens = torch.stack(given, dim=1) if len(given) > 1 else given[0]
    dim, heads = tokens.shape[-1], meta(path)["heads"]
    permutation = TokenPermutation(dim, len(given), num_heads=heads, dtype=torch.float64)
    permutation.load_state_dict(released_permutation(state))
    result = permutation(tokens[:, :, 0], tokens[:, :, 1:])
    torch.testing.assert_close(result.flatten(1), found["eval.out.out"], rtol=0, atol=1e-10)
    actual = torch.autograd.grad(result.flatten(1), given, found["eval.cot.out"].double())
    for own, theirs in zip(actual, expected, strict=True):
        torch.testing.assert_close(own.reshape(theirs.shape), theirs, rtol=0, atol=1e-10)


@every("topreid_tpm_*.npz")
def test_released_arrays_after_every_stage(path):
    found = load(path)
    state = released_permutation({name[6:]: value.double() for name, value in found.items() if name[:5] == "param"})
    tokens = torch.stack([found[f"in.{name}"].double() for name in MODALITIES], dim=1)
    heads = meta(path)["heads"]
    everything = torch.ones(len(tokens), 3, dtype=torch.bool)
    stages = permuted_tokens(tokens[:, :, 0], tokens[:, :, 1:], everything, state, heads)
    for number, stage in enumerate(stages[:2], start=1):
        expected = torch.stack([found[f"eval.out.stage{number}_cls.{name}"] for name in MODALITIES], dim=1)
        torch.testing.assert_close(stage, expected, rtol=0, atol=1e-10)


def test_gradcheck():
    permutation, (tokens, patches) = layer(modalities=2, dim=4), inputs(2, 2, 3, 4)
    present = torch.tensor([[True, True], [True, False]])
    assert torch.autograd.gradcheck(lambda *leaves: permutation(*leaves, present), (tokens, patches))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernel_is_its_readable_twin(dtype):
    """The kernel against plain operations, which run where the patches need no gradient: values and gradients."""
    permutation, (tokens, patches) = layer().to(dtype), (item.detach().to(dtype) for item in inputs())
    leaves = [tokens.requires_grad_(), *permutation.parameters()]
    plain = with_gradients(permutation(tokens, patches), leaves)
    by_kernel = with_gradients(permutation(tokens, patches.clone().requires_grad_()), leaves)
    torch.testing.assert_close(by_kernel, plain)


def test_a_second_derivative_of_the_patches_is_refused():
    permutation, (tokens, patches) = layer(), inputs()
    (first,) = torch.autograd.grad(permutation(tokens, patches).square().sum(), patches, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.square().sum().backward()


def test_function_transforms_see_through():
    permutation, (tokens, patches) = layer(), (item.detach() for item in inputs(batch=3))

    def loss(tokens: Tensor, patches: Tensor) -> Tensor:
        return permutation(tokens[None], patches[None]).square().sum()

    per_sample = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(tokens, patches)
    leaves = [tokens.clone().requires_grad_(), patches.clone().requires_grad_()]
    torch.testing.assert_close(per_sample, torch.autograd.grad(permutation(*leaves).square().sum(), leaves))


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_absent_slots_change_nothing(modalities, seed):
    permutation, (tokens, patches) = layer(modalities), inputs(3, modalities)
    present = gaps(3, modalities, seed)
    leaves = [tokens, patches, *permutation.parameters()]
    expected = with_gradients(permutation(tokens, patches, present), leaves)
    broken = [
        torch.where(present[..., None], tokens.detach(), torch.nan).requires_grad_(),
        torch.where(present[..., None, None], patches.detach(), torch.inf).requires_grad_(),
    ]
    actual = with_gradients(permutation(*broken, present), [*broken, *permutation.parameters()])
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    assert not expected[0][~present].any()


@given(st.integers(2, 4))
def test_an_absent_last_modality_is_a_skipped_call(modalities):
    """What is left are the calls between the others, in their stages."""
    permutation, (tokens, patches) = layer(modalities), inputs(2, modalities)
    present = torch.ones(2, modalities, dtype=torch.bool)
    present[:, 1:] = False
    alone = TokenPermutation(6, 1, num_heads=2, mlp_ratio=1.5, dtype=torch.float64)
    alone.stages[0].load_state_dict(permutation.stages[-1].state_dict())  # the stage of the own patches
    torch.testing.assert_close(permutation(tokens, patches, present)[:, :1], alone(tokens[:, :1], patches[:, :1]))


def test_the_order_of_the_patches_does_not_matter_and_that_of_the_modalities_does():
    permutation, (tokens, patches) = layer(), inputs()
    result = permutation(tokens, patches)
    torch.testing.assert_close(permutation(tokens, patches.flip(2)), result)
    turned = permutation(tokens.roll(1, dims=1), patches.roll(1, dims=1))  # a turn of the cycle
    torch.testing.assert_close(turned.roll(-1, dims=1), result)
    swapped = permutation(tokens.flip(1), patches.flip(1)).flip(1)
    assert (swapped - result).abs().max() > 1e-3


def test_large_common_offsets_cost_no_digits():
    """Keys are centred before they are multiplied, as in any layer norm."""
    permutation, (tokens, patches) = layer().float(), (item.detach().float() for item in inputs())
    far = (patches + 1000).requires_grad_()
    exact = layer()
    exact.load_state_dict(permutation.state_dict())
    expected = exact.double()(tokens.double(), far.detach().double())
    error = (permutation(tokens, far) - expected).norm() / expected.norm()
    assert error < 1e-4


def test_an_empty_batch():
    permutation, (tokens, patches) = layer(), inputs(batch=0)
    result = permutation(tokens, patches)
    assert result.shape == (0, 3, 6)
    result.sum().backward()


def test_refusals():
    with pytest.raises(ValueError, match="num_heads must divide dim; received dim=6, num_heads=4"):
        TokenPermutation(6, 3, num_heads=4)
    with pytest.raises(ValueError, match="num_modalities must be at least 1; received 0"):
        TokenPermutation(6, 0, num_heads=2)
    with pytest.raises(ValueError, match=r"mlp_ratio \* dim must be at least 1; received mlp_ratio=0.1, dim=6"):
        TokenPermutation(6, 3, num_heads=2, mlp_ratio=0.1)
    permutation, (tokens, patches) = layer(), inputs()
    with pytest.raises(ValueError, match=r"globals must have width dim=6 and num_modalities=3; received shape \(2, 2"):
        permutation(tokens[:, :2], patches[:, :2])
    with pytest.raises(ValueError, match=r"patches must hold at least one token; received shape \(2, 3, 0, 6\)"):
        permutation(tokens, patches[:, :, :0])
    weights = [torch.eye(6, dtype=torch.float64)] * 3
    with pytest.raises(ValueError, match="num_heads must divide dim; received dim=6, num_heads=5"):
        cyclic_readout(tokens, patches, *weights, num_heads=5)
    with pytest.raises(ValueError, match=r"patches must hold at least one token; received shape \(2, 3, 0, 6\)"):
        cyclic_readout(tokens, patches[:, :, :0], *weights, num_heads=2)


def test_initial_values_are_those_of_torch():
    stage = TokenPermutation(64, 1).stages[0]
    assert torch.equal(stage.key_scale, torch.ones(64))
    for linear in (stage.query, stage.key, stage.value, stage.out_proj):
        assert 0.9 / 8 < linear.weight.abs().max() <= 1 / 8
