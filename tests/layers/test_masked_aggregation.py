"""Masked aggregation: against loops over single tokens, against the released arrays, and by the laws it obeys."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from examples.editor.released import released_aggregation, released_centres
from reference import editor as reference
from reference.blocks import self_attention
from stmi_layers import CentreAlignment, MaskedAggregation, masked_self_attention
from vectors import MODALITIES, every, load, meta

CLOSE = {"rtol": 0, "atol": 1e-10}


def layer(modalities: int = 2, dim: int = 4, max_kept: int | None = None) -> MaskedAggregation:
    """With every parameter at random, so that none can hide behind its initial value."""
    torch.manual_seed(1)
    aggregation = MaskedAggregation(dim, modalities, num_heads=2, mlp_ratio=1.5, max_kept=max_kept, dtype=torch.float64)
    for parameter in aggregation.parameters():
        nn.init.uniform_(parameter, -0.9, 0.9)
    return aggregation


def inputs(batch: int = 2, modalities: int = 2, tokens: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, modalities, tokens, 4, generator=generator, dtype=torch.float64)
    return values.requires_grad_(), torch.rand(batch, modalities, tokens, generator=generator) < 0.6


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    total = (result * weights).sum() + 0 * sum(leaf.sum() for leaf in leaves if leaf.isfinite().all())
    return [result.detach(), *torch.autograd.grad(total, leaves, materialize_grads=True)]


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_layer_matches_the_loops(modalities, tokens, seed):
    aggregation, (values, keep) = layer(modalities), inputs(2, modalities, tokens, seed)
    state = dict(aggregation.named_parameters())
    leaves = [values, *state.values()]
    for actual, function in ((aggregation.within, reference.within), (aggregation, reference.aggregate)):
        expected = function(values, keep, state, 2)
        torch.testing.assert_close(with_gradients(actual(values, keep), leaves), with_gradients(expected, leaves))


@given(st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_attention_matches_the_loops(tokens, seed):
    values, keep = (item[:, 0] for item in inputs(2, 1, tokens, seed))
    weights = [torch.randn(rows, 4, dtype=torch.float64).requires_grad_() for rows in (12, 4)]
    rows = [self_attention(list(values[b]), keep[b].tolist(), *weights, None, 2) for b in range(2)]
    expected = torch.stack([torch.stack(row) for row in rows])
    actual = masked_self_attention(values, keep, *weights, 2)
    torch.testing.assert_close(with_gradients(actual, [values, *weights]), with_gradients(expected, [values, *weights]))


@every("editor_masked_attention_*.npz")
def test_released_attention(path):
    found = load(path)
    heads = meta(path)["heads"]
    tokens = found["in.tokens"].double().requires_grad_()
    weights = found["param.qkv.weight"].double(), found["param.proj.weight"].double()
    # The release lets tokens outside the mask in as they are; what they hold is not read.
    result = masked_self_attention(tokens, found["in.mask"], *weights, heads)
    torch.testing.assert_close(result, found["eval.out.out"], **CLOSE)
    (gradient,) = torch.autograd.grad(result, tokens, found["eval.cot.out"].double())
    torch.testing.assert_close(gradient, found["eval.grad.in.tokens"], **CLOSE)


@every("editor_hma_*.npz")
def test_released_aggregation(path):
    found = load(path)
    settings = meta(path)
    state = {name[6:]: value.double() for name, value in found.items() if name.startswith("param.")}
    leaves = [found[f"in.{name}"].double().requires_grad_() for name in MODALITIES]
    tokens = torch.stack(leaves, dim=1)
    keep = torch.cat([torch.ones(len(tokens), 1, dtype=torch.bool), found["in.mask"]], dim=1)[:, None].expand(-1, 3, -1)
    aggregation = MaskedAggregation(tokens.shape[-1], 3, num_heads=settings["heads"], dtype=torch.float64)
    aggregation.load_state_dict(released_aggregation(state))

    result = aggregation(tokens, keep)
    torch.testing.assert_close(result.flatten(1, 2), found["eval.out.tokens"], **CLOSE)
    expected = [found[f"eval.grad.in.{name}"] for name in MODALITIES]
    cotangent = found["eval.cot.tokens"].double()
    torch.testing.assert_close(
        list(torch.autograd.grad(result.flatten(1, 2), leaves, cotangent, retain_graph=True)), expected, **CLOSE
    )

    own = aggregation.within(tokens, keep)
    expected = [found[f"train.intra_cls.{name}"] for name in MODALITIES]
    torch.testing.assert_close(list(own[:, :, 0].unbind(1)), expected, **CLOSE)
    sizes = (tokens.shape[-1], settings["identities"], 3)
    centres = CentreAlignment(*sizes, rate=settings["momentum"], start="zero", dtype=torch.float64)
    centres.centres.copy_(released_centres(state))
    loss = centres(own[:, :, 0], found["in.labels"])
    torch.testing.assert_close(loss, found["train.out.ocfr_loss"], rtol=0, atol=1e-7)
    expected = [found[f"train.after.centers.{name}"] for name in MODALITIES]
    torch.testing.assert_close(list(centres.centres), expected, rtol=0, atol=1e-7)
    total = (aggregation.across(own, keep).flatten(1, 2) * found["train.cot.tokens"]).sum()
    total = total + loss * found["train.cot.ocfr_loss"]
    expected = [found[f"train.grad.in.{name}"] for name in MODALITIES]
    torch.testing.assert_close(list(torch.autograd.grad(total, leaves)), expected, rtol=0, atol=1e-7)


@given(st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_it_is_the_layer_on_the_kept_tokens_alone(modalities, seed):
    """One sample, the same number of kept tokens in every modality: what is not kept can be removed."""
    aggregation, (tokens, _) = layer(modalities), inputs(1, modalities, 5, seed)
    number = 1 + seed % 5
    kept = torch.stack([torch.randperm(5)[:number].sort().values for _ in range(modalities)])
    keep = torch.zeros(1, modalities, 5, dtype=torch.bool).scatter(2, kept[None], True)
    alone = tokens[keep].reshape(1, modalities, number, 4)
    expected = aggregation(alone, torch.ones(1, modalities, number, dtype=torch.bool))
    torch.testing.assert_close(aggregation(tokens, keep)[keep].reshape(expected.shape), expected)


@given(st.integers(1, 3), st.integers(0, 2**32 - 1), st.booleans())
def test_absent_and_dropped_slots_change_nothing(modalities, seed, with_present):
    aggregation, (tokens, keep) = layer(modalities), inputs(3, modalities, 4, seed)
    present = torch.rand(3, modalities) < 0.6 if with_present else None
    used = keep & present[..., None] if with_present else keep
    broken = torch.where(used[..., None], tokens.detach(), torch.nan).requires_grad_()
    results = [
        with_gradients(aggregation(leaf, keep, present), [leaf, *aggregation.parameters()]) for leaf in (tokens, broken)
    ]
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert not results[0][0][~used].any()
    assert not results[0][1][~used].any()
    torch.testing.assert_close(results[0][0], aggregation(tokens, used).detach())


def test_packed_dense_and_bounded_forms_agree():
    """A captured graph computes all tokens, or as many as `max_kept` says: the same values and gradients."""
    aggregation, (tokens, keep) = layer(), inputs(3, 2, 6, seed=4)
    most = int(keep.sum(dim=2).max())
    assert 1 < most < 6
    bounded = layer(max_kept=most)
    expected = with_gradients(aggregation(tokens, keep), [tokens, *aggregation.parameters()])
    dense = torch.compile(aggregation, fullgraph=True, backend="eager")
    for form, owner in ((dense, aggregation), (bounded, bounded)):
        actual = with_gradients(form(tokens, keep), [tokens, *owner.parameters()])
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(layer(max_kept=9)(tokens, keep), expected[0])


def test_more_than_max_kept_is_nan_for_this_sample_alone():
    tokens, keep = inputs(2, 2, 6)
    keep[0], keep[1] = torch.tensor([True, False, True, False, True, False]), False
    keep[1, :, :2] = True
    result = layer(max_kept=2)(tokens, keep)
    assert result[0][keep[0]].isnan().all()
    torch.testing.assert_close(result[1:], layer()(tokens[1:], keep[1:]))


def test_kept_tokens_alone_are_computed():
    aggregation, (tokens, _) = layer(), inputs(3, 2, 6)
    keep = torch.zeros(3, 2, 6, dtype=torch.bool)
    keep[:, 0, :2] = keep[:, 1, 4] = True
    sizes = []
    for block in (*aggregation.blocks, aggregation.joint):
        block.register_forward_pre_hook(lambda _, arguments: sizes.append(tuple(arguments[0].shape[:2])))
    aggregation(tokens, keep)
    assert sizes == [(3, 2), (3, 1), (3, 3)]


def test_nothing_kept_and_empty_batches():
    aggregation, (tokens, keep) = layer(), inputs()
    result = aggregation(tokens, torch.zeros_like(keep))
    assert not result.any()
    gradients = torch.autograd.grad(result.sum(), [tokens, *aggregation.parameters()])
    assert not any(gradient.any() for gradient in gradients)
    assert aggregation(tokens[:0], keep[:0]).shape == (0, 2, 4, 4)


def test_gradcheck():
    aggregation, (tokens, keep) = layer(), inputs(1, 2, 3, seed=3)
    assert 0 < keep.sum() < keep.numel()
    assert torch.autograd.gradcheck(lambda tokens: aggregation(tokens, keep), tokens)


def test_refusals():
    with pytest.raises(ValueError, match="num_heads must divide dim; received dim=6, num_heads=4"):
        MaskedAggregation(6, 3, num_heads=4)
    with pytest.raises(ValueError, match="max_kept must be at least 1; received 0"):
        MaskedAggregation(8, 3, max_kept=0)
    with pytest.raises(ValueError, match=r"mlp_ratio \* dim must be at least 1; received mlp_ratio=0.1, dim=8"):
        MaskedAggregation(8, 3, mlp_ratio=0.1)
    aggregation, (tokens, keep) = layer(), inputs(2, 3)
    for function in (aggregation, aggregation.within, aggregation.across):
        with pytest.raises(ValueError, match="tokens must have width dim=4 and num_modalities=2; received shape"):
            function(tokens, keep)
    with pytest.raises(ValueError, match="num_heads must divide dim; received dim=4, num_heads=3"):
        masked_self_attention(tokens[:, 0], keep[:, 0], torch.rand(12, 4).double(), torch.rand(4, 4).double(), 3)


def test_initial_values_are_small():
    aggregation = MaskedAggregation(64, 2)
    for name, value in aggregation.named_parameters():
        if value.ndim == 2:
            assert 0.015 < value.std() < 0.025, name
        assert value.ndim == 2 or torch.equal(value, torch.full_like(value, float("weight" in name)))
