"""The readout of all subsets of the modalities: against loops, torch, the released arrays, and by its laws."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import nn

from examples.demo.released import released_state
from laws import assert_inert, randomise, with_gradients
from reference.subset_readout import subset_readout
from stmi_layers import SubsetReadout, modality_subsets, subset_attention, subset_presence
from vectors import every, load, meta, part


def layer(modalities: int = 3, dim: int = 4, num_heads: int = 2, **options) -> SubsetReadout:
    return randomise(SubsetReadout(dim, modalities, num_heads=num_heads, dtype=torch.float64, **options))


def inputs(batch: int = 2, modalities: int = 3, tokens: int = 4, dim: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, modalities, tokens, dim, generator=generator, dtype=torch.float64)
    return values.requires_grad_(), torch.rand(batch, modalities, generator=generator) < 0.6


examples = st.builds(
    inputs,
    batch=st.integers(1, 2),
    modalities=st.integers(1, 3),
    tokens=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)


@given(examples, st.sampled_from([1, 2, 4]), st.sampled_from(["read", "drop"]), st.booleans())
def test_readout_matches_the_loops(example, num_heads, incomplete, missing):
    tokens, present = example
    present = present if missing else torch.ones_like(present)
    readout = layer(tokens.shape[1], num_heads=num_heads, incomplete=incomplete)
    state = dict(readout.named_parameters())
    expected = subset_readout(tokens, present, state, num_heads, incomplete == "drop")
    actual = readout(tokens, present if missing else None)
    leaves = [tokens, *state.values()]
    unused = 0 * sum(leaf.sum() for leaf in leaves)
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected + unused, leaves))


def test_readout_matches_a_module_of_torch_per_subset():
    readout, (tokens, _) = layer(4, dim=8), inputs(modalities=4, dim=8)
    actual = readout(tokens)
    assert actual.shape == (2, 15, 8)
    for s, members in enumerate(modality_subsets(4)):
        oracle = nn.MultiheadAttention(8, 2, batch_first=True, dtype=torch.float64)
        with torch.no_grad():
            weights = (readout.query_weight[s], readout.key_weight[s], readout.value_weight[s])
            oracle.in_proj_weight.copy_(torch.cat(weights))
            oracle.in_proj_bias.copy_(torch.cat([readout.query_bias[s], torch.randn(8), readout.value_bias[s]]))
            oracle.out_proj.weight.copy_(readout.out_weight[s])
            oracle.out_proj.bias.copy_(readout.out_bias[s])
        context = tokens[:, members].flatten(1, 2)
        query = readout.queries[s].expand(2, 1, 8)
        expected, attention = oracle(query, context, context, average_attn_weights=False)
        torch.testing.assert_close(actual[:, s], expected[:, 0])
        of_members = readout.attention(tokens)[:, s][:, :, members].flatten(2)
        torch.testing.assert_close(of_members, attention[:, :, 0])


@every("demo_hdm_*.npz")
def test_readout_gives_the_released_numbers(path):
    arrays = load(path, torch.float64)
    names = ("rgb", "nir", "tir")
    parts = [torch.cat([arrays[f"in.{name}_global"][:, None], arrays[f"in.{name}_patches"]], dim=1) for name in names]
    tokens = torch.stack(parts, dim=1).requires_grad_()
    readout = SubsetReadout(tokens.shape[3], 3, num_heads=meta(path)["heads"], dtype=torch.float64)
    state = released_state(part(arrays, "param."))
    readout.load_state_dict({name.removeprefix("readout."): value for name, value in state.items()})
    for mode in ("eval", "train"):
        actual = readout.train(mode == "train")(tokens)
        order = meta(path)["order"]
        expected = torch.stack([arrays[f"{mode}.out.{name}"] for name in order], dim=1)
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)
        cotangent = torch.stack([arrays[f"{mode}.cot.{name}"] for name in order], dim=1)
        (gradient,) = torch.autograd.grad(actual, [tokens], cotangent)
        for m, name in enumerate(names):
            of_global = arrays[f"{mode}.grad.in.{name}_global"]
            torch.testing.assert_close(gradient[:, m, 0], of_global, rtol=1e-10, atol=1e-10)
            of_patches = arrays[f"{mode}.grad.in.{name}_patches"]
            torch.testing.assert_close(gradient[:, m, 1:], of_patches, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("modalities", [1, 2, 3, 4, 5])
def test_subsets_come_by_size_and_then_by_their_members(modalities):
    subsets = modality_subsets(modalities)
    members = [tuple(row.nonzero().flatten().tolist()) for row in subsets]
    assert len(set(members)) == len(members) == 2**modalities - 1
    assert all((len(a), a) < (len(b), b) for a, b in pairwise(members))
    ends = modality_subsets(modalities, "ends")
    chosen = [row for row, own in zip(subsets, members, strict=True) if len(own) in (1, modalities)]
    assert torch.equal(ends, torch.stack(chosen))


@given(examples, st.sampled_from([float("nan"), float("inf"), 1e300]), st.sampled_from(["read", "drop"]))
def test_absent_modalities_are_inert(example, garbage, incomplete):
    tokens, present = example
    readout = layer(tokens.shape[1], incomplete=incomplete)
    disturbed = torch.where(present[..., None, None], tokens, garbage)
    assert_inert(readout, (tokens, present), (disturbed, present))
    attention = readout.attention(disturbed, present)
    assert not attention.movedim(3, 1)[~present].any()
    there = subset_presence(present, readout.subsets)
    sums = attention.sum(dim=(3, 4))
    torch.testing.assert_close(sums, there[..., None].expand_as(sums).double())


@given(examples)
def test_an_absent_modality_is_one_removed(example):
    tokens, _ = example
    modalities = tokens.shape[1]
    if modalities == 1:
        return
    readout = layer(modalities)
    present = torch.ones(tokens.shape[:2], dtype=torch.bool)
    torch.testing.assert_close(readout(tokens, present), readout(tokens))
    present[:, -1] = False
    actual = readout(tokens, present)
    fewer = layer(modalities - 1)
    without_last = [s for s, row in enumerate(readout.subsets) if not row[-1]]
    fewer.load_state_dict({name: value[without_last] for name, value in readout.state_dict().items()})
    torch.testing.assert_close(actual[:, without_last], fewer(tokens[:, :-1]))
    alone = [s for s, row in enumerate(readout.subsets) if row.sum() == row[-1]]
    assert not actual[:, alone].any()
    dropped = layer(modalities, incomplete="drop")
    dropped.load_state_dict(readout.state_dict())
    with_last = readout.subsets[:, -1]
    result = dropped(tokens, present)
    assert not result[:, with_last].any()
    torch.testing.assert_close(result[:, ~with_last], actual[:, ~with_last])


@given(examples, st.randoms(use_true_random=False), st.integers(1, 3))
def test_neither_the_order_nor_the_repetition_of_tokens_matters(example, random, times):
    tokens, present = example
    readout = layer(tokens.shape[1])
    order = list(range(tokens.shape[2])) * times
    random.shuffle(order)
    torch.testing.assert_close(readout(tokens[:, :, order], present), readout(tokens, present))


def test_only_members_are_read():
    readout, (tokens, _) = layer(), inputs()
    output = readout(tokens)
    for s, members in enumerate(readout.subsets):
        (gradient,) = torch.autograd.grad(output[:, s].sum(), [tokens], retain_graph=True)
        assert torch.equal(gradient.flatten(2).any(dim=2), members.expand(2, 3))


def test_readout_gradcheck():
    tokens, _ = inputs(modalities=2, tokens=2)
    present = torch.tensor([[True, True], [False, True]])
    assert torch.autograd.gradcheck(layer(2), (tokens, present))


def test_dropout_acts_on_the_weights_and_only_in_training():
    exact, dropping = layer(1, num_heads=1), layer(1, num_heads=1, dropout=0.5)
    dropping.load_state_dict(exact.state_dict())
    tokens, _ = inputs(batch=200, modalities=1, tokens=1)
    torch.testing.assert_close(dropping.eval()(tokens), exact(tokens))
    # One token has all the weight: it is read twice, or not at all.
    output, bias = dropping.train()(tokens)[:, 0], exact.out_bias[0] + exact.out_weight[0] @ exact.value_bias[0]
    read = exact(tokens)[:, 0] - bias
    factors = ((output - bias) / read).round(decimals=6)
    assert set(factors.flatten().tolist()) == {0.0, 2.0}


def test_large_logits_stay_finite():
    tokens, rows = torch.full((1, 2, 3, 4), 100.0), torch.full((3, 1, 4), 100.0)
    tokens[:, 1] = -100
    actual = subset_attention(tokens, rows, modality_subsets(2))
    torch.testing.assert_close(actual[0, 2, 0, 0], torch.full((3,), 1 / 3))
    torch.testing.assert_close(actual[0, 1, 0, 1], torch.full((3,), 1 / 3))


def test_empty_batch_and_initial_values():
    readout = SubsetReadout(64, 2)
    assert readout(torch.zeros(0, 2, 5, 64)).shape == (0, 3, 64)
    for parameter in (readout.query_bias, readout.value_bias, readout.out_bias):
        assert not parameter.any()
    bound = (6 / (4 * 64)) ** 0.5  # Xavier of a matrix of 3 * 64 x 64
    for parameter in (readout.query_weight, readout.key_weight, readout.value_weight):
        assert 0.98 * bound < parameter.abs().max() <= bound
    assert 0.98 / 8 < readout.out_weight.abs().max() <= 1 / 8
    torch.testing.assert_close(readout.queries.std(), torch.tensor(1 / 8), rtol=0.2, atol=0)


def test_the_subsets_move_with_the_layer_and_stay_out_of_its_state():
    readout = SubsetReadout(8, 2, device="meta")
    assert readout.subsets.device.type == "meta"
    assert "subsets" not in readout.state_dict()
    readout = readout.to_empty(device="cpu")
    readout.reset_parameters()
    assert torch.equal(readout.half().subsets, modality_subsets(2))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((8, 3), {"num_heads": 3}, "num_heads must divide dim; received dim=8, num_heads=3"),
        ((8, 0), {}, "num_modalities must be at least 1; received 0"),
        ((8, 3), {"dropout": -0.5}, r"dropout must be a probability in \[0, 1\]; received -0.5"),
        ((8, 3), {"subsets": "some"}, "subsets must be one of 'all', 'ends'; received 'some'"),
        ((8, 3), {"incomplete": "fill"}, "incomplete must be one of 'read', 'drop'; received 'fill'"),
    ],
)
def test_readout_refuses(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        SubsetReadout(*arguments, **options)


def test_readout_refuses_other_shapes():
    readout = SubsetReadout(8, 3)
    message = r"tokens must have num_modalities=3 and width dim=8; received shape \(2, 2, 5, 8\)"
    with pytest.raises(ValueError, match=message):
        readout(torch.randn(2, 2, 5, 8))
    with pytest.raises(TypeCheckError, match="present"):
        readout(torch.randn(2, 3, 5, 8), torch.ones(2, 4, dtype=torch.bool))
