"""Readout of all experts: against loops, against torch's own attention, and by the laws it obeys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import reference
from laws import assert_inert, randomise, with_gradients
from stmi_layers import ExpertReadout


def layer(dim: int = 4, num_heads: int = 2, **options) -> ExpertReadout:
    return randomise(ExpertReadout(dim, num_heads=num_heads, dtype=torch.float64, **options))


def inputs(batch: int = 2, modalities: int = 2, patches: int = 3, experts: int = 3, dim: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    globals_ = torch.randn(batch, modalities, dim, generator=generator, dtype=torch.float64)
    tokens = torch.randn(batch, experts, modalities * patches, dim, generator=generator, dtype=torch.float64)
    return (
        globals_.requires_grad_(),
        tokens.requires_grad_(),
        torch.rand(batch, modalities, generator=generator) < 0.6,
    )


examples = st.builds(
    inputs,
    batch=st.integers(1, 2),
    modalities=st.integers(1, 3),
    patches=st.integers(1, 3),
    experts=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)


@given(examples, st.booleans(), st.booleans(), st.sampled_from([1, 2]))
def test_readout_matches_the_loops(example, norm, missing, num_heads):
    globals_, tokens, present = example
    readout = layer(num_heads=num_heads, norm=norm)
    state = dict(readout.named_parameters())
    present = present if missing else torch.ones_like(present)
    context = tokens.flatten(1, 2)
    modality = torch.arange(tokens.shape[2]) // (tokens.shape[2] // globals_.shape[1])
    keep = present[:, modality].repeat(1, tokens.shape[1])
    query = globals_
    if norm:
        query, context = (
            torch.stack(
                [
                    reference.layer_norm(row, state[f"{name}.weight"], state[f"{name}.bias"])
                    for row in values.flatten(0, 1)
                ]
            ).reshape(values.shape)
            for values, name in ((query, "norm_globals"), (context, "norm_tokens"))
        )
    projections = [state[name] for name in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")]
    read = reference.cross_attention(query, context, *projections, num_heads=num_heads, keep=keep)
    expected = (read + globals_) * present[..., None]
    leaves = [globals_, tokens, *state.values()]
    actual = readout(globals_, tokens, present if missing else None)
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves))


@pytest.mark.parametrize("dim", [4, 64])
def test_readout_matches_torch(dim):
    """At width 64 the tokens are not projected, at width 4 they are."""
    readout, (globals_, tokens, _) = layer(dim), inputs(modalities=3, dim=dim)
    oracle = nn.MultiheadAttention(dim, 2, batch_first=True, dtype=torch.float64)
    oracle.load_state_dict(readout.state_dict())
    context = tokens.flatten(1, 2)
    expected = globals_ + oracle(globals_, context, context, need_weights=False)[0]
    actual = readout(globals_, tokens)
    torch.testing.assert_close(with_gradients(actual, [globals_, tokens]), with_gradients(expected, [globals_, tokens]))


@given(examples, st.sampled_from([float("nan"), float("inf"), 1e300]), st.booleans())
def test_absent_modalities_are_inert(example, garbage, norm):
    globals_, tokens, present = example
    readout = layer(norm=norm)
    keep = present.repeat_interleave(tokens.shape[2] // globals_.shape[1], dim=1)[:, None, :, None]
    disturbed = torch.where(present[..., None], globals_, garbage), torch.where(keep, tokens, garbage)
    assert_inert(readout, (globals_, tokens, present), (*disturbed, present))
    actual = readout(*disturbed, present)
    assert not actual[~present].any()
    everything = torch.ones_like(present)
    torch.testing.assert_close(readout(globals_, tokens, everything), readout(globals_, tokens))


def test_an_absent_modality_is_one_removed():
    readout, (globals_, tokens, _) = layer(), inputs(modalities=3)
    present = torch.tensor([[True, False, True]]).expand(2, 3)
    kept = tokens.unflatten(2, (3, -1))[:, :, [0, 2]].flatten(2, 3)
    torch.testing.assert_close(readout(globals_, tokens, present)[:, [0, 2]], readout(globals_[:, [0, 2]], kept))


@given(examples, st.randoms(use_true_random=False))
def test_the_order_of_experts_does_not_matter(example, random):
    globals_, tokens, present = example
    readout = layer()
    order = list(range(tokens.shape[1]))
    random.shuffle(order)
    torch.testing.assert_close(readout(globals_, tokens[:, order], present), readout(globals_, tokens, present))


def test_readout_gradcheck():
    globals_, tokens, _ = inputs(patches=2, experts=2, dim=2)
    present = torch.tensor([[True, False], [True, True]])
    assert torch.autograd.gradcheck(layer(2, norm=True), (globals_, tokens, present))


def test_empty_batch_and_initial_values():
    readout = ExpertReadout(16)
    assert readout(torch.zeros(0, 3, 16), torch.zeros(0, 4, 6, 16)).shape == (0, 3, 16)
    assert not readout.in_proj_bias.any()
    assert not readout.out_proj.bias.any()
    torch.manual_seed(3)
    readout.reset_parameters()
    torch.manual_seed(3)
    assert torch.equal(readout.in_proj_weight, nn.init.xavier_uniform_(torch.empty(48, 16)))


def test_readout_refuses():
    with pytest.raises(ValueError, match="num_heads must divide dim; received dim=8, num_heads=3"):
        ExpertReadout(8, num_heads=3)
    readout = ExpertReadout(8)
    with pytest.raises(ValueError, match=r"globals must have width dim=8; received shape \(2, 3, 6\)"):
        readout(torch.randn(2, 3, 6), torch.randn(2, 4, 9, 6))
    message = "tokens must hold equally many of each of 3 modalities; received 10"
    with pytest.raises(ValueError, match=message):
        readout(torch.randn(2, 3, 8), torch.randn(2, 4, 10, 8), torch.ones(2, 3, dtype=torch.bool))
