"""Text-modulated and shared experts: against loops, and by the laws they obey."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from laws import assert_inert, randomise, with_gradients
from reference import token_experts as reference
from stmi_layers import SharedExperts, TextModulatedExperts, text_similarity, token_gates


def text_layer(modalities: int = 2, experts: int = 3, dim: int = 4, **options) -> TextModulatedExperts:
    settings = {"mlp_ratio": 2, "dropout": 0.0, "dtype": torch.float64} | options
    return randomise(TextModulatedExperts(dim, modalities, experts, **settings))


def shared_layer(experts: int = 3, dim: int = 4, **options) -> SharedExperts:
    return randomise(
        SharedExperts(dim, experts, **({"mlp_ratio": 2, "dropout": 0.0, "dtype": torch.float64} | options))
    )


def inputs(batch: int = 2, modalities: int = 2, patches: int = 3, experts: int = 3, dim: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, modalities, patches, dim, generator=generator, dtype=torch.float64)
    text = torch.randn(batch, experts, modalities, dim, generator=generator, dtype=torch.float64)
    present, has_text = (torch.rand(shape, generator=generator) < 0.6 for shape in ((batch, modalities), (batch,)))
    return values.requires_grad_(), text.requires_grad_(), present, has_text


examples = st.builds(
    inputs,
    batch=st.integers(1, 2),
    modalities=st.integers(1, 3),
    patches=st.integers(1, 3),
    experts=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)


@given(examples, st.booleans(), st.booleans(), st.booleans())
def test_text_experts_match_the_loops(example, described, missing, partly):
    patches, text, present, has_text = example
    layer = text_layer(patches.shape[1], text.shape[1])
    state = dict(layer.named_parameters())
    text = text if described else None
    present = present if missing else torch.ones_like(present)
    has_text = has_text if partly else torch.ones_like(has_text)
    weights = reference.modulation(patches, text, present, has_text, state, layer.num_experts)
    expected = reference.text_experts(patches, weights, present, state)
    arguments = (patches, text, present if missing else None, has_text if partly else None)
    leaves = [patches, *(() if text is None else (text,)), *state.values()]
    unused = 0 * sum(leaf.sum() for leaf in leaves)
    actual = with_gradients(layer(*arguments), leaves)
    torch.testing.assert_close(actual, with_gradients(expected + unused, leaves))
    flat = torch.stack([value for b in weights for e in b for m in e for value in m])
    torch.testing.assert_close(layer.modulation(*arguments).flatten(), flat)


@given(examples, st.booleans())
def test_shared_experts_match_the_loops(example, missing):
    patches, text, present, _ = example
    layer = shared_layer(text.shape[1])
    present = present if missing else torch.ones_like(present)
    state = dict(layer.named_parameters())
    leaves = [patches, *state.values()]
    expected = reference.shared_experts(patches, present, state) + 0 * sum(leaf.sum() for leaf in leaves)
    actual = layer(patches, present if missing else None)
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves))


@given(examples, st.sampled_from([float("nan"), float("inf"), 1e300]))
def test_what_is_absent_is_inert(example, garbage):
    patches, text, present, has_text = example
    hidden = torch.where(present[..., None, None], patches, garbage)
    said = torch.where((present & has_text[:, None])[:, None, :, None], text, garbage)
    layer = text_layer(patches.shape[1], text.shape[1])
    assert_inert(layer, (patches, text, present, has_text), (hidden, said, present, has_text))
    shared = shared_layer()
    assert_inert(shared, (patches, present), (hidden, present))
    absent = ~present.repeat_interleave(patches.shape[2], dim=1)
    for result in (layer(hidden, said, present, has_text), shared(hidden, present)):
        assert not result.transpose(1, 2)[absent].any()
    for weights in (layer.modulation(hidden, said, present, has_text), shared.gates(hidden, present)):
        assert not weights.transpose(1, 2)[~present].any()


@given(examples)
def test_no_text_is_a_mixture_of_zero(example):
    patches, text, present, has_text = example
    layer = text_layer(patches.shape[1], text.shape[1])
    expected = layer(patches, None, present)
    torch.testing.assert_close(layer(patches, text, present, torch.zeros_like(has_text)), expected)
    torch.nn.init.zeros_(layer.mix_contract.weight)
    torch.nn.init.zeros_(layer.mix_contract.bias)
    torch.testing.assert_close(layer(patches, text, present), expected)


@given(examples)
def test_one_text_for_all_is_the_same_text_for_each(example):
    patches, text, present, has_text = example
    layer = text_layer(patches.shape[1], text.shape[1])
    for one in (text[:, :1], text[:, :, :1], text[:, :1, :1]):
        actual = layer(patches, one, present, has_text)
        torch.testing.assert_close(actual, layer(patches, one.expand_as(text), present, has_text))


def test_the_length_of_a_text_does_not_matter_and_its_direction_does():
    patches, text, *_ = inputs()
    layer = text_layer()
    torch.testing.assert_close(layer(patches, 7 * text), layer(patches, text))
    assert not torch.allclose(layer(patches, -text), layer(patches, text))
    expected = F.cosine_similarity(patches[:, None], text[:, :, :, None], dim=-1)
    torch.testing.assert_close(text_similarity(patches, text), expected)


def test_zero_vectors_have_no_likeness_and_a_finite_gradient():
    patches, text, *_ = inputs()
    for zero in (0 * patches.detach(), patches), (text, 0 * text.detach()):
        leaves = [item.detach().requires_grad_() for item in (zero[0] if zero[0].shape == patches.shape else patches,)]
        other = (zero[1] if zero[0].shape != patches.shape else text).detach().requires_grad_()
        actual = text_similarity(leaves[0], other)
        assert not actual.any()
        gradients = torch.autograd.grad(actual.sum(), [leaves[0], other])
        assert not any(gradient.any() for gradient in gradients)


def test_texts_of_another_width_are_mapped():
    patches, text, *_ = inputs()
    layer, plain = text_layer(text_dim=5), text_layer()
    plain.load_state_dict(layer.state_dict(), strict=False)
    assert layer.text_proj is not None
    other = torch.randn(*text.shape[:3], 5, dtype=torch.float64)
    torch.testing.assert_close(layer(patches, other), plain(patches, layer.text_proj(other)))


def test_one_shared_expert_is_a_feed_forward_block():
    patches, *_ = inputs()
    layer = shared_layer(1)
    own = layer.experts
    rows = F.layer_norm(patches, (4,), own.norm_weight[0], own.norm_bias[0])
    hidden = F.gelu(F.linear(rows, own.expand_weight[0], own.expand_bias[0]))
    expected = patches + F.linear(hidden, own.contract_weight[0], own.contract_bias[0])
    torch.testing.assert_close(layer(patches)[:, 0], expected.flatten(1, 2))


@given(examples)
def test_shared_gates_are_shares_and_tokens_do_not_meet(example):
    patches, text, present, _ = example
    layer = shared_layer(text.shape[1])
    gates = layer.gates(patches, present)
    torch.testing.assert_close(gates.sum(dim=1), present[..., None].expand_as(gates[:, 0]).double())
    one_by_one = [
        layer(patches[:, m : m + 1, n : n + 1]) for m in range(patches.shape[1]) for n in range(patches.shape[2])
    ]
    torch.testing.assert_close(layer(patches), torch.cat(one_by_one, dim=2))


def test_gates_of_large_logits_stay_finite():
    gates = token_gates(torch.full((1, 1, 2), 1e4), torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 0.0]]), torch.zeros(3))
    torch.testing.assert_close(gates.flatten(), torch.tensor([0.5, 0.5, 0.0]))


def test_gradcheck():
    patches, text, present, has_text = inputs(patches=2, experts=2, dim=2)
    present[0], has_text[0] = torch.tensor([True, False]), True
    assert torch.autograd.gradcheck(text_layer(experts=2, dim=2), (patches, text, present, has_text))
    assert torch.autograd.gradcheck(shared_layer(2, dim=2), (patches, present))


def test_dropout_spares_the_residual_and_acts_only_in_training():
    patches, *_ = inputs()
    dropped = shared_layer(1, dropout=1.0)
    torch.testing.assert_close(dropped(patches)[:, 0], patches.flatten(1, 2))
    exact = shared_layer(1)
    exact.load_state_dict(dropped.state_dict())
    torch.testing.assert_close(dropped.eval()(patches), exact(patches))


def test_text_changes_nothing_at_first_and_can_learn_to():
    layer = TextModulatedExperts(4, 2, 3, dropout=0.0)
    patches, text = torch.randn(2, 2, 5, 4), torch.randn(2, 3, 2, 4)
    torch.testing.assert_close(layer(patches, text), layer(patches))
    (gradient,) = torch.autograd.grad(layer(patches, text).square().sum(), [layer.mix_contract.weight])
    assert gradient.any()
    torch.testing.assert_close(
        TextModulatedExperts(1024, 2, mlp_ratio=1).route_weight.std(), torch.tensor(1 / 32), rtol=0.1, atol=0
    )


def test_experts_start_apart_with_the_values_of_torch():
    own = SharedExperts(64, 2).experts
    assert own.norm_weight.eq(1).all()
    assert not own.norm_bias.any()
    for weight, bias, fan_in in (
        (own.expand_weight, own.expand_bias, 64),
        (own.contract_weight, own.contract_bias, 256),
    ):
        for parameter in (weight, bias):
            assert 0.9 * fan_in**-0.5 < parameter.abs().max() <= fan_in**-0.5
            assert not torch.equal(parameter[0], parameter[1])


def test_empty_batches():
    assert SharedExperts(8)(torch.zeros(0, 3, 5, 8)).shape == (0, 4, 15, 8)
    assert TextModulatedExperts(8, 3)(torch.zeros(0, 3, 5, 8), torch.zeros(0, 4, 3, 8)).shape == (0, 4, 15, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_experts": 0}, "num_experts must be at least 1; received 0"),
        ({"dropout": 2.0}, r"dropout must be a probability in \[0, 1\]; received 2.0"),
        ({"mlp_ratio": 0.1}, r"mlp_ratio \* dim must be at least 1; received mlp_ratio=0.1, dim=8"),
    ],
)
def test_experts_refuse(options, message):
    with pytest.raises(ValueError, match=message):
        SharedExperts(8, **options)
    with pytest.raises(ValueError, match=message):
        TextModulatedExperts(8, 3, **options)


def test_text_experts_refuse():
    with pytest.raises(ValueError, match="num_modalities must be at least 1; received 0"):
        TextModulatedExperts(8, 0)
    with pytest.raises(ValueError, match="text_dim must be at least 1; received 0"):
        TextModulatedExperts(8, 3, text_dim=0)
    layer, patches = TextModulatedExperts(8, 3), torch.randn(2, 3, 5, 8)
    with pytest.raises(ValueError, match=r"patches must have num_modalities=3 and width dim=8; received shape \(2, 2"):
        layer(patches[:, :2])
    rule = r"text must be for 1 or 4 experts, 1 or 3 modalities, of width 8; received shape"
    for shape in ((2, 3, 3, 8), (2, 4, 2, 8), (2, 4, 3, 6)):
        with pytest.raises(ValueError, match=rule):
            layer(patches, torch.randn(shape))
    with pytest.raises(TypeCheckError, match="has_text"):
        layer(patches, torch.randn(2, 4, 3, 8), None, torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"patches must have width dim=8; received shape \(2, 3, 5, 6\)"):
        SharedExperts(8)(torch.randn(2, 3, 5, 6))
