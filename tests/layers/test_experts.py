"""Gated experts: against loops, against the released arrays, and by the laws they obey."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import nn

from examples.demo.released import released_state
from laws import assert_inert, randomise, with_gradients
from reference.experts import gated_experts
from stmi_layers import GatedExperts, feature_gates, head_experts
from stmi_layers._batch_norm import batch_norm
from vectors import every, load, meta, part


def layer(features: int = 3, dim: int = 4, num_heads: int = 2) -> GatedExperts:
    experts = randomise(GatedExperts(dim, features, num_heads=num_heads, dtype=torch.float64))
    for norm in (experts.norm_joined, experts.norm_experts):
        nn.init.uniform_(norm.running_mean, -1, 1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return experts


def inputs(batch: int = 3, features: int = 3, dim: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(batch, features, dim, generator=generator, dtype=torch.float64)
    return values.requires_grad_(), torch.rand(batch, features, generator=generator) < 0.6


examples = st.builds(inputs, batch=st.integers(1, 4), features=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))


@given(examples, st.sampled_from([1, 2, 4]), st.booleans(), st.booleans())
def test_experts_match_the_loops(example, num_heads, training, missing):
    features, present = example
    if training:
        # Every feature in two samples at least, so that it has statistics; and two samples that differ.
        features = torch.cat([features, torch.randn(2, *features.shape[1:]).double()]).detach().requires_grad_()
        present = torch.cat([present, torch.ones(2, features.shape[1], dtype=torch.bool)])
    present = present if missing else torch.ones_like(present)
    experts = layer(features.shape[1], num_heads=num_heads).train(training)
    state = {name: value.clone() for name, value in experts.state_dict(keep_vars=True).items()}
    expected, gates = gated_experts(features, present, state, num_heads, training)
    leaves = [features, *experts.parameters()]
    actual = experts(features, present if missing else None)
    unused = 0 * sum(leaf.sum() for leaf in leaves)
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected + unused, leaves))
    torch.testing.assert_close(experts.gates(features, present if missing else None), gates)


@every("demo_atmoe_*.npz")
def test_experts_give_the_released_numbers(path):
    arrays = load(path, torch.float64)
    order, heads = meta(path)["order"], meta(path)["heads"]
    features = torch.stack([arrays[f"in.{name}"] for name in order], dim=1).requires_grad_()
    experts = GatedExperts(features.shape[2], len(order), num_heads=heads, dtype=torch.float64)

    def carried(state):
        return {name.removeprefix("experts."): value for name, value in released_state(state).items()}

    before = part(arrays, "param.")
    experts.load_state_dict(carried(before))
    prefixed = {f"fusion.moe.{name}": value for name, value in before.items()} | {"fusion.other": torch.zeros(1)}
    assert carried(prefixed).keys() == carried(before).keys()
    for mode in ("eval", "train"):
        experts.train(mode == "train").zero_grad()
        gates = experts.eval().gates(features) if mode == "eval" else None
        actual = experts(features)
        torch.testing.assert_close(actual.flatten(1), arrays[f"{mode}.out.out"], rtol=1e-10, atol=1e-10)
        if gates is not None:
            torch.testing.assert_close(gates, arrays["eval.out.gates"][:, :, 0], rtol=1e-10, atol=1e-10)
        (actual.flatten(1) * arrays[f"{mode}.cot.out"]).sum().backward(inputs=[features, *experts.parameters()])
        for s, name in enumerate(order):
            expected = arrays[f"{mode}.grad.in.{name}"]
            torch.testing.assert_close(features.grad[:, s], expected, rtol=1e-10, atol=1e-10)
            for h in range(heads):
                gradient = experts.expert_weight.grad[s, h]
                expected = arrays[f"{mode}.gradstat.experts.{h}.expertHead.{s}.mlp.0.weight"]
                torch.testing.assert_close(
                    torch.stack([gradient.sum(), gradient.norm()]), expected, rtol=1e-9, atol=1e-9
                )
        features.grad = None
    expected = carried({**before, **part(arrays, "train.after.")})
    torch.testing.assert_close(experts.state_dict(), expected, rtol=1e-10, atol=1e-10)


@given(examples, st.sampled_from([float("nan"), float("inf"), 1e300]))
def test_absent_features_are_inert(example, garbage):
    features, present = example
    experts = layer(features.shape[1]).train(len(features) > 1)
    disturbed = torch.where(present[..., None], features, garbage)
    for norm in (experts.norm_joined, experts.norm_experts):
        norm.momentum = 0.0  # both calls with the same statistics
    assert_inert(experts, (features, present), (disturbed, present))
    assert not experts(disturbed, present)[~present].any()


def test_absent_samples_do_not_move_the_statistics():
    features, _ = inputs(batch=5)
    alone, together = layer(), layer()
    together.load_state_dict(alone.state_dict())
    present = torch.ones(5, 3, dtype=torch.bool)
    present[3:] = False
    torch.testing.assert_close(together(features, present)[:3], alone(features[:3]))
    torch.testing.assert_close(together.state_dict(), alone.state_dict())


def test_a_feature_without_statistics_uses_the_running_ones_and_leaves_them():
    features, _ = inputs()
    experts = layer()
    before = {name: value.clone() for name, value in experts.norm_experts.state_dict().items()}
    present = torch.ones(3, 3, dtype=torch.bool)
    present[1:, 0] = False  # feature 0 in one sample only
    experts(features, present)
    after = experts.norm_experts.state_dict()
    for name in ("running_mean", "running_var"):
        assert torch.equal(after[name][:4], before[name][:4])
        assert not torch.equal(after[name][4:], before[name][4:])
    rows = torch.randn(2, 4).double()
    norm = nn.BatchNorm1d(4, dtype=torch.float64)
    nn.init.uniform_(norm.running_mean)
    expected = norm.eval()(rows)
    keep = torch.tensor([[True], [False]]).expand(2, 4)
    torch.testing.assert_close(batch_norm(norm.train(), rows, keep)[:1], expected[:1])


@given(examples)
def test_all_present_is_no_mask(example):
    features, present = example
    experts = layer(features.shape[1])
    everything = torch.ones_like(present)
    for training in (False, True)[: 1 + (len(features) > 1)]:
        twin = layer(features.shape[1])
        twin.load_state_dict(experts.state_dict())
        experts.train(training)
        torch.testing.assert_close(twin.train(training)(features, everything), experts(features))
        torch.testing.assert_close(twin.state_dict(), experts.state_dict())


@given(examples)
def test_gates_are_weights(example):
    features, present = example
    gates = layer(features.shape[1]).eval().gates(features, present)
    torch.testing.assert_close(gates.sum(dim=2), present.any(dim=1)[:, None].expand(-1, 2).double())
    assert (gates.mT[~present] == 0).all()
    equal = layer(features.shape[1]).eval().gates(features[:, :1].expand_as(features))
    torch.testing.assert_close(equal, torch.full_like(equal, 1 / features.shape[1]))


def test_heads_and_features_have_experts_of_their_own():
    weight, bias = torch.randn(3, 2, 2, 2).double(), torch.randn(3, 2, 2).double()
    features = torch.randn(1, 3, 4).double()
    jacobian = torch.autograd.functional.jacobian(lambda x: head_experts(x, weight, bias), features)
    for s in range(3):
        for h in range(2):
            rows = jacobian[0, s, 2 * h : 2 * h + 2].clone()
            assert rows[:, 0, s, 2 * h : 2 * h + 2].all()
            rows[:, 0, s, 2 * h : 2 * h + 2] = 0
            assert not rows.any()


def test_experts_gradcheck():
    features, _ = inputs(batch=3, features=2)
    present = torch.tensor([[True, True], [False, True], [True, True]])
    for mask in (None, present):
        experts = layer(2)
        experts.norm_joined.momentum = experts.norm_experts.momentum = 0.0
        assert torch.autograd.gradcheck(experts, (features, mask))


def test_gates_of_large_logits_stay_finite():
    query, features = torch.full((1, 2), 1e3), torch.full((1, 3, 2), 1e3)
    actual = feature_gates(query, features, torch.eye(2), torch.eye(2), num_heads=1)
    torch.testing.assert_close(actual, torch.full((1, 1, 3), 1 / 3))


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_training_keeps_its_gradients(masked):
    exact = randomise(GatedExperts(8, 3, num_heads=2)).bfloat16().double()
    half = GatedExperts(8, 3, num_heads=2, dtype=torch.bfloat16)
    half.load_state_dict(exact.state_dict())
    features, upstream = (torch.rand(1024, 3, 8).bfloat16() for _ in range(2))
    present = torch.ones(1024, 3, dtype=torch.bool) if masked else None
    expected = torch.autograd.grad(exact(features.double(), present), list(exact.parameters()), upstream.double())
    actual = torch.autograd.grad(half(features, present), list(half.parameters()), upstream)
    for gradient, right in zip(actual, expected, strict=True):
        assert (gradient.double() - right).norm() < 0.03 * right.norm()


def test_batches_of_one_and_none():
    experts = GatedExperts(8, 3)
    message = "batch must hold at least two samples for batch norm in training; received 1"
    for present in (None, torch.ones(1, 3, dtype=torch.bool)):
        with pytest.raises(ValueError, match=message):
            experts(torch.randn(1, 3, 8), present)
    assert experts.eval()(torch.randn(1, 3, 8)).shape == (1, 3, 8)
    assert experts(torch.zeros(0, 3, 8)).shape == (0, 3, 8)


def test_initial_values():
    experts = GatedExperts(64, 3, num_heads=4)
    for parameter, fan_in in ((experts.query_weight, 64), (experts.key_weight, 64), (experts.expert_weight, 16)):
        assert 0.98 * fan_in**-0.5 < parameter.abs().max() <= fan_in**-0.5
    assert experts.expert_bias.any()
    assert experts.expert_bias.abs().max() <= 0.25


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((8, 0), {}, "num_features must be at least 1; received 0"),
        ((8, 3), {"num_heads": 3}, "num_heads must divide dim; received dim=8, num_heads=3"),
    ],
)
def test_experts_refuse(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        GatedExperts(*arguments, **options)


def test_functions_and_layer_refuse_other_shapes():
    message = r"features must have num_features=3 rows of width dim=8; received shape \(2, 4, 8\)"
    with pytest.raises(ValueError, match=message):
        GatedExperts(8, 3)(torch.randn(2, 4, 8))
    with pytest.raises(TypeCheckError, match="present"):
        GatedExperts(8, 3)(torch.randn(2, 3, 8), torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="num_heads must divide dim; received dim=2, num_heads=3"):
        feature_gates(torch.zeros(1, 2), torch.zeros(1, 3, 2), torch.eye(2), torch.eye(2), num_heads=3)
