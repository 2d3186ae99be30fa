"""Interaction: against loops, against the released arrays, and by the laws it obeys."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.signal_reid.released import released_state
from reference import selection as reference
from stmi_layers.interaction import SelectiveInteraction
from stmi_layers.selection import TokenSelection
from vectors import MODALITIES, assert_equal, every, load, part, stacked

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2**32 - 1))
READINGS = ("hidden", "zeroed")


def problem(
    batch: int = 3, modalities: int = 3, patches: int = 5, seed: int = 0, dim: int = 4
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Class tokens, patches, gates and `present`, with a patch that takes part where there is a modality."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, modalities, patches + 1, dim, generator=generator, dtype=torch.float64)
    present = torch.rand(batch, modalities, generator=generator) < 0.7
    gates = torch.rand(batch, modalities, patches, generator=generator) < 0.5
    gates[..., 0] = True
    gates = torch.where(present[..., None], gates, False).double()
    return tokens[:, :, 0].requires_grad_(), tokens[:, :, 1:].requires_grad_(), gates.requires_grad_(), present


def layer(dim: int = 4, **options) -> SelectiveInteraction:
    """With every parameter at random, so that none can hide behind its initial value."""
    interaction = SelectiveInteraction(dim, **{"num_heads": 2, **options}, dtype=torch.float64)
    for parameter in interaction.parameters():
        nn.init.uniform_(parameter, -1, 1)
    return interaction


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    """The result, and the gradients of a weighted sum of it."""
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaves, materialize_grads=True)]


@pytest.mark.parametrize("unselected", READINGS)
@given(sizes=SIZES)
def test_layer_matches_the_loops(sizes, unselected):
    class_tokens, patches, gates, present = problem(*sizes)
    interaction = layer(unselected=unselected)
    state = dict(interaction.named_parameters())
    actual = interaction(class_tokens, patches, gates, present)
    hidden = unselected == "hidden"
    expected = reference.interaction(class_tokens, patches, gates, present, state, 2, hidden)
    leaves = [class_tokens, patches, gates, *state.values()]
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves))


@given(SIZES)
def test_without_gates_or_gaps_everything_is_read(sizes):
    class_tokens, patches, gates, present = problem(*sizes)
    interaction = layer()
    everything = torch.ones_like(gates), torch.ones_like(present)
    expected = interaction(class_tokens, patches, *everything)
    torch.testing.assert_close(interaction(class_tokens, patches), expected)
    torch.testing.assert_close(layer_of(interaction, "zeroed")(class_tokens, patches, *everything), expected)


def layer_of(interaction: SelectiveInteraction, unselected: str) -> SelectiveInteraction:
    other = layer(unselected=unselected)
    other.load_state_dict(interaction.state_dict())
    return other


@given(SIZES)
def test_hidden_patches_are_removed_patches(sizes):
    class_tokens, patches, gates, _ = problem(*sizes)
    gates = gates.detach()
    gates[..., 0] = 1
    interaction = layer()
    actual = interaction(class_tokens, patches, gates)
    noise = torch.where(gates[..., None] == 0, torch.randn_like(patches) * 100, patches)
    torch.testing.assert_close(interaction(class_tokens, noise, gates), actual)
    zeroed = layer_of(interaction, "zeroed")(class_tokens, patches, gates)
    assert torch.allclose(zeroed, actual) == bool(gates.all())


@pytest.mark.parametrize("unselected", READINGS)
@given(sizes=SIZES)
def test_an_absent_modality_is_a_modality_less(sizes, unselected):
    class_tokens, patches, gates, present = problem(*sizes)
    interaction = layer(unselected=unselected)
    result = interaction(class_tokens, patches, gates, present)
    assert not result[~present].any()
    for b, there in enumerate(present):
        if there.any():
            alone = interaction(class_tokens[b : b + 1, there], patches[b : b + 1, there], gates[b : b + 1, there])
            torch.testing.assert_close(result[b, there], alone[0])


@pytest.mark.parametrize("unselected", READINGS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e30])
def test_what_stands_in_an_absent_slot_does_not_matter(filler, gated, unselected):
    class_tokens, patches, gates, present = problem()
    present[0], present[1] = torch.tensor([True, False, True]), torch.tensor([False, False, False])
    interaction = layer(unselected=unselected)

    def found(filler: float) -> list[Tensor]:
        slots = torch.where(present[..., None], class_tokens, filler).detach().requires_grad_()
        maps = torch.where(present[..., None, None], patches, filler).detach().requires_grad_()
        opened = torch.where(present[..., None], gates, filler).detach().requires_grad_() if gated else None
        result = interaction(slots, maps, opened, present)
        return with_gradients(result, [slots, maps, *([opened] if gated else []), *interaction.parameters()])

    expected = found(0.0)
    assert all(item.isfinite().all() for item in expected)
    torch.testing.assert_close(found(filler), expected)


def test_the_order_of_modalities_is_that_of_the_result():
    class_tokens, patches, gates, present = problem()
    interaction = layer()
    order = [2, 0, 1]
    moved = interaction(class_tokens[:, order], patches[:, order], gates[:, order], present[:, order])
    torch.testing.assert_close(moved, interaction(class_tokens, patches, gates, present)[:, order])


@pytest.mark.parametrize("heads", [2, 8])  # patches projected, or not
def test_attention_is_that_of_torch(heads):
    torch.manual_seed(0)
    dim = 16 * heads
    oracle = nn.MultiheadAttention(dim, heads, batch_first=True)
    interaction = SelectiveInteraction(dim, num_heads=heads)
    mismatch = interaction.load_state_dict(oracle.state_dict(), strict=False)
    assert not mismatch.unexpected_keys
    class_tokens, patches = torch.randn(2, 3, dim), torch.randn(2, 3, 7, dim)
    gates = (torch.rand(2, 3, 7) < 0.5).float()
    context = patches.flatten(1, 2)
    read, _ = oracle(class_tokens, context, context, key_padding_mask=gates.flatten(1) == 0)
    tokens = interaction.norm_attention(class_tokens + read)
    expected = interaction.norm_ffn(tokens + interaction.ffn(tokens))
    torch.testing.assert_close(interaction(class_tokens, patches, gates), expected)


def test_gates_of_a_selection_teach_it():
    class_tokens, patches, _, present = problem(dim=8)
    selection, interaction = TokenSelection(8, 2, dtype=torch.float64), layer(8)
    result = interaction(class_tokens, patches, selection(patches, class_tokens, present), present)
    found = with_gradients(result, list(selection.parameters()))[1:]
    assert all(gradient.isfinite().all() and gradient.any() for gradient in found)


def test_second_derivative_and_transforms():
    class_tokens, patches, gates, _ = problem(batch=2, modalities=2, patches=2)
    interaction = layer()

    def gated(class_tokens: Tensor, patches: Tensor) -> Tensor:
        return interaction(class_tokens, patches, gates)

    assert torch.autograd.gradcheck(gated, (class_tokens, patches))
    assert torch.autograd.gradgradcheck(gated, (class_tokens, patches))

    def loss(patches: Tensor, gates: Tensor) -> Tensor:
        return interaction(class_tokens[:1].detach(), patches[None], gates[None]).square().sum()

    leaves = patches.detach(), gates.detach()
    found = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(*leaves)
    each = [torch.func.grad(loss, argnums=(0, 1))(*items) for items in zip(*leaves, strict=True)]
    torch.testing.assert_close(found, tuple(torch.stack(item) for item in zip(*each, strict=True)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_heads": 3}, "num_heads must divide dim; received dim=8, num_heads=3"),
        ({"mlp_ratio": 0.1}, r"mlp_ratio \* dim must be at least 1; received mlp_ratio=0.1, dim=8"),
        ({"unselected": "none"}, "unselected must be one of 'hidden', 'zeroed'; received 'none'"),
    ],
)
def test_layer_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        SelectiveInteraction(8, **options)


def test_layer_refuses_another_width():
    with pytest.raises(ValueError, match=r"class_tokens must have width dim=8; received shape \(3, 3, 4\)"):
        SelectiveInteraction(8)(*problem()[:2])


# The released arrays


@every("signal_sim_*.npz")
@pytest.mark.parametrize("straight_through", [False, True])  # adds no gradient to patches and class tokens
def test_released_selection_and_interaction(path, straight_through):
    arrays = load(path)
    patches = stacked(arrays, "input/patches_{}").requires_grad_()
    class_tokens = stacked(arrays, "input/global_{}").requires_grad_()
    dim, dtype = patches.shape[-1], patches.dtype
    selection = TokenSelection(dim, int(arrays["meta/k"]), straight_through=straight_through, dtype=dtype)
    interaction = SelectiveInteraction(dim, num_heads=int(arrays["meta/heads"]), unselected="zeroed", dtype=dtype)
    state = released_state(part(arrays, "param/"))
    selection.load_state_dict(part(state, "selection."))
    interaction.load_state_dict(part(state, "interaction."))
    for mode in ("eval", "train"):
        result = interaction(class_tokens, patches, selection(patches, class_tokens)).flatten(1)
        assert_equal(result.detach(), arrays[f"{mode}/output"])
        names = dict(interaction.named_parameters())
        leaves = [patches, class_tokens, *names.values()]
        found = torch.autograd.grad((result * arrays["input/cotangent"]).sum(), leaves)
        for index, modality in enumerate(MODALITIES):
            assert_equal(found[0][:, index], arrays[f"{mode}/grad_patches_{modality}"])
            assert_equal(found[1][:, index], arrays[f"{mode}/grad_global_{modality}"])
        expected = part(released_state(part(arrays, f"{mode}/grad_param/")), "interaction.")
        assert expected.keys() == names.keys()
        for name, gradient in zip(names, found[2:], strict=True):
            assert_equal(gradient, expected[name])


@every("signal_general_*.npz")
@pytest.mark.parametrize("unselected", READINGS)
def test_selection_and_interaction_of_any_number_of_modalities(path, unselected):
    arrays = load(path)
    patches, class_tokens = (arrays[f"input/{name}"].requires_grad_() for name in ("patches", "class_tokens"))
    present, dim, dtype = arrays["present"].bool(), patches.shape[-1], patches.dtype
    renamed = {"selection.": "token_selection.", "interaction.in": "modal_interactive.cross_attn.in"}
    renamed |= {"interaction.out": "modal_interactive.cross_attn.out", "interaction.": "modal_interactive."}
    parameters = {}
    for name, value in part(arrays, "param/").items():
        start = next((start for start in renamed if name.startswith(start)), None)
        if start:
            parameters[renamed[start] + name.removeprefix(start)] = value
    state = released_state(parameters)
    selection = TokenSelection(dim, int(arrays["meta/k"]), dtype=dtype)
    interaction = SelectiveInteraction(dim, unselected=unselected, dtype=dtype)
    selection.load_state_dict(part(state, "selection."))
    interaction.load_state_dict(part(state, "interaction."))
    result = interaction(class_tokens, patches, selection(patches, class_tokens, present), present)
    expected = part(arrays, f"sim/{unselected}/")
    assert_equal(result.detach(), torch.where(present[..., None], expected["output"], 0.0))
    cotangent = torch.where(present[..., None], expected["cotangent"], 0.0)
    found = torch.autograd.grad((result * cotangent).sum(), [patches, class_tokens])
    assert_equal(found[0], expected["grad_patches"])
    assert_equal(found[1], expected["grad_class_tokens"])
