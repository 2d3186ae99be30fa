"""Losses against the loops of `reference.py`, against public libraries, and the laws they obey."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

import reference
from stmi_layers import IdentityHead, ReIDLoss, batch_hard_triplet

MARGINS = [None, 0.0, 0.3, 5.0]


@st.composite
def batches(draw, min_identities: int = 1):
    """Ragged batches: every identity with its own number of samples, in any order."""
    counts = draw(st.lists(st.integers(1, 4), min_size=min_identities, max_size=4))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=generator)]
    features = torch.randn(len(labels), draw(st.integers(1, 5)), generator=generator, dtype=torch.float64)
    return features, labels


def value_and_gradient(loss, features: Tensor) -> tuple[Tensor, Tensor]:
    features = features.detach().clone().requires_grad_()
    value = loss(features)
    return value.detach(), torch.autograd.grad(value, features)[0]


@given(batch=batches(), margin=st.sampled_from(MARGINS))
def test_triplet_matches_the_loops(batch, margin):
    features, labels = batch
    actual = value_and_gradient(lambda x: batch_hard_triplet(x, labels, margin=margin), features)
    expected = value_and_gradient(lambda x: reference.batch_hard_triplet(x, labels, margin), features)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("margin", MARGINS)
def test_triplet_gradcheck(margin):
    features = torch.randn(7, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 0, 2, 1, 1, 3])
    assert torch.autograd.gradcheck(lambda x: batch_hard_triplet(x, labels, margin=margin), features)


@pytest.mark.parametrize("margin", MARGINS)
def test_triplet_matches_pytorch_metric_learning(margin):
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    distances = pytest.importorskip("pytorch_metric_learning.distances")
    reducers = pytest.importorskip("pytorch_metric_learning.reducers")
    distance = distances.LpDistance(p=2, normalize_embeddings=False)
    options = {"distance": distance, "reducer": reducers.MeanReducer(), "swap": False}
    smooth = margin is None
    loss = losses.TripletMarginLoss(margin=0.0 if smooth else margin, smooth_loss=smooth, **options)
    miner = miners.BatchHardMiner(distance=distance)
    labels = torch.arange(6).repeat_interleave(4)
    features = torch.randn(24, 16, dtype=torch.float64)
    actual = value_and_gradient(lambda x: batch_hard_triplet(x, labels, margin=margin), features)
    expected = value_and_gradient(lambda x: loss(x, labels, miner(x, labels)), features)
    torch.testing.assert_close(actual, expected)


@given(batch=batches(), offset=st.integers(-9, 9), seed=st.integers(0, 99))
def test_triplet_ignores_names_order_rotation_and_translation(batch, offset, seed):
    features, labels = batch
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    names = torch.randperm(20, generator=generator)
    square = torch.randn(features.shape[1], features.shape[1], generator=generator, dtype=torch.float64)
    moved = features @ torch.linalg.qr(square).Q + offset
    actual = batch_hard_triplet(moved[order], names[labels[order]])
    torch.testing.assert_close(actual, batch_hard_triplet(features, labels))


@given(batch=batches(), scale=st.sampled_from([2.0**-50, 0.125, 2.0**19, 2.0**50]))
def test_hinge_without_margin_is_homogeneous(batch, scale):
    features, labels = batch[0].float(), batch[1]
    expected = scale * batch_hard_triplet(features, labels, margin=0.0)
    actual = batch_hard_triplet(features * scale, labels, margin=0.0)
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=0)


def test_triplet_is_exact_far_from_the_origin():
    features = torch.randint(0, 50, (24, 8)).float()
    labels = torch.arange(24) % 5
    actual = batch_hard_triplet(features + 2**16, labels)
    torch.testing.assert_close(actual, batch_hard_triplet(features, labels))


def test_more_distant_negatives_cost_less():
    labels = torch.tensor([0, 0, 1, 1])
    features = torch.tensor([[0.0], [1.0], [0.0], [1.0]])
    losses = [batch_hard_triplet(features + labels[:, None] * gap, labels) for gap in (2.0, 4.0, 8.0, 16.0)]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 1e-5


@pytest.mark.parametrize(
    "labels", [[0, 1, 2, 3], [5, 5, 5, 5], [0], []], ids=["no positive", "no negative", "one", "none"]
)
@pytest.mark.parametrize("margin", [None, 0.3])
def test_no_valid_anchor_gives_zero_with_a_zero_gradient(labels, margin):
    labels = torch.tensor(labels, dtype=torch.int64)
    value, gradient = value_and_gradient(
        lambda x: batch_hard_triplet(x, labels, margin=margin), torch.randn(len(labels), 3)
    )
    assert value == 0
    assert gradient.shape == (len(labels), 3)
    assert gradient.count_nonzero() == 0


def test_anchors_without_a_positive_are_left_out():
    features = torch.tensor([[0.0], [3.0], [1.0]])
    actual = batch_hard_triplet(features, torch.tensor([0, 0, 1]), margin=1.0)
    assert actual == ((3 - 1 + 1) + (3 - 2 + 1)) / 2


@pytest.mark.parametrize("margin", [None, 0.3])
def test_identical_features_have_finite_gradients(margin, device):
    labels = torch.tensor([0, 0, 1, 1], device=device)
    value, gradient = value_and_gradient(
        lambda x: batch_hard_triplet(x, labels, margin=margin), torch.ones(4, 3, device=device)
    )
    torch.testing.assert_close(value.item(), 0.3 if margin else torch.tensor(2.0).log().item())
    assert gradient.count_nonzero() == 0


def test_a_duplicated_sample_is_a_positive_but_no_sample_is_its_own():
    features = torch.tensor([[0.0], [0.0], [2.0]])
    assert batch_hard_triplet(features, torch.tensor([0, 0, 1]), margin=5.0) == 3.0
    assert batch_hard_triplet(features[1:], torch.tensor([0, 1]), margin=5.0) == 0.0


def test_non_finite_features_show_in_the_loss():
    labels = torch.tensor([0, 0, 1, 1])
    for value in (float("nan"), float("inf")):
        features = torch.randn(4, 3)
        features[2, 1] = value
        assert not batch_hard_triplet(features, labels).isfinite()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 3e4])
def test_half_precision_costs_nothing_but_the_rounding_of_the_input(dtype, scale, device):
    features = (torch.randn(12, 8, device=device) * scale).clamp(-6e4, 6e4).to(dtype)
    labels = torch.arange(12, device=device) % 4
    value, gradient = value_and_gradient(lambda x: batch_hard_triplet(x, labels), features)
    expected_value, expected_gradient = value_and_gradient(lambda x: batch_hard_triplet(x, labels), features.float())
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected_value)
    torch.testing.assert_close(gradient, expected_gradient.to(dtype))


def test_float16_loss_survives_the_initial_scale_of_a_gradient_scaler(device):
    features = torch.randn(8, 16, device=device, dtype=torch.float16)
    labels = torch.arange(8, device=device) % 4
    _, gradient = value_and_gradient(lambda x: batch_hard_triplet(x, labels) * 2.0**16, features)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_does_not_reach_the_distances(dtype, device):
    features, labels = torch.randn(96, 8, device=device), torch.arange(96, device=device) % 24
    expected = batch_hard_triplet(features, labels)
    with torch.autocast(device, dtype):
        torch.testing.assert_close(batch_hard_triplet(features, labels), expected, rtol=0, atol=0)


def test_triplet_under_vmap_matches_a_loop():
    features, labels = torch.randn(3, 6, 4), torch.tensor([0, 1, 0, 2, 2, 1])
    actual = torch.func.vmap(lambda x: batch_hard_triplet(x, labels))(features)
    torch.testing.assert_close(actual, torch.stack([batch_hard_triplet(x, labels) for x in features]))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # the forward mode of torch uses it
@pytest.mark.parametrize("margin", [None, 0.3])
def test_triplet_under_function_transforms(margin):
    features, labels = torch.randn(3, 6, 4), torch.tensor([0, 1, 0, 2, 2, 1])

    def loss(x: Tensor) -> Tensor:
        return batch_hard_triplet(x, labels, margin=margin)

    expected = torch.stack([value_and_gradient(loss, x)[1] for x in features])
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(features), expected)
    torch.testing.assert_close(torch.func.grad(lambda x: torch.func.vmap(loss)(x).sum())(features), expected)
    forward_mode = torch.func.jvp(loss, (features[0],), (features[1],))
    torch.testing.assert_close(forward_mode, (loss(features[0]), (expected[0] * features[1]).sum()))


@pytest.mark.parametrize("margin", [None, 0.3])
def test_triplet_has_second_derivatives(margin):
    features, labels = torch.randn(6, 3, dtype=torch.float64, requires_grad=True), torch.tensor([0, 0, 1, 1, 2, 2])
    assert torch.autograd.gradgradcheck(lambda x: batch_hard_triplet(x, labels, margin=margin), features)


@pytest.mark.parametrize("margin", [-0.1, float("inf"), float("nan")])
def test_margin_out_of_range(margin):
    with pytest.raises(ValueError, match=r"margin must be None \(soft margin\) or finite and at least 0; received"):
        batch_hard_triplet(torch.randn(2, 3), torch.tensor([0, 1]), margin=margin)
    with pytest.raises(ValueError, match=r"margin must be None"):
        ReIDLoss(3, 2, margin=margin)


def test_labels_of_another_length_or_dtype_are_named():
    with pytest.raises(TypeCheckError, match="labels"):
        batch_hard_triplet(torch.randn(4, 3), torch.tensor([0, 0, 1]))
    with pytest.raises(TypeCheckError, match="labels"):
        ReIDLoss(3, 2)(torch.randn(4, 3), torch.zeros(4))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("margin", [None, 0.3])
def test_reid_loss_matches_the_loops(smoothing, margin):
    loss = ReIDLoss(
        4,
        5,
        smoothing=smoothing,
        margin=margin,
        identity_weight=0.25,
        triplet_weight=2.0,
        dtype=torch.float64,
    )
    torch.nn.init.normal_(loss.head.classifier.weight)
    torch.nn.init.uniform_(loss.head.norm.weight, 0.5, 2.0)
    features, labels = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 3, 3, 1, 0, 0])

    def expected(x: Tensor) -> Tensor:
        logits = reference.batch_norm(x, loss.head.norm.weight) @ loss.head.classifier.weight.T
        identity = reference.smoothed_cross_entropy(logits, labels, smoothing)
        return 0.25 * identity + 2.0 * reference.batch_hard_triplet(x, labels, margin)

    actual = value_and_gradient(lambda x: loss(x, labels), features)
    torch.testing.assert_close(actual, value_and_gradient(expected, features))


def test_reid_loss_gradcheck():
    loss = ReIDLoss(3, 4, dtype=torch.float64)
    torch.nn.init.normal_(loss.head.classifier.weight)
    features = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: loss(x, torch.tensor([0, 0, 1, 1, 3, 2])), features)


@given(smoothing=st.floats(0, 0.99), identity_weight=st.floats(0, 4), triplet_weight=st.floats(0, 4))
def test_reid_loss_is_the_weighted_sum_of_two_public_losses(smoothing, identity_weight, triplet_weight):
    loss = ReIDLoss(6, 5, smoothing=smoothing, identity_weight=identity_weight, triplet_weight=triplet_weight)
    features, labels = torch.randn(8, 6), torch.arange(8) % 4
    entropy = torch.nn.CrossEntropyLoss(label_smoothing=smoothing)(loss.head(features), labels)
    expected = identity_weight * entropy + triplet_weight * batch_hard_triplet(features, labels)
    torch.testing.assert_close(loss(features, labels), expected)


def test_initial_identity_loss_favours_nobody():
    loss = ReIDLoss(64, 100, triplet_weight=0.0)
    value = loss(torch.randn(16, 64), torch.arange(16))
    torch.testing.assert_close(value, torch.tensor(100.0).log(), rtol=0.01, atol=0)


def test_head_is_a_norm_without_shift_and_a_classifier_without_bias():
    head = IdentityHead(8, 5)
    features = torch.randn(16, 8) * 3 + 7
    logits = head(features)
    torch.testing.assert_close(logits.mean(dim=0), torch.zeros(5), atol=1e-6, rtol=0)
    learned = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    assert learned == {"norm.weight", "classifier.weight"}
    assert head.norm.bias.count_nonzero() == 0
    assert list(head.state_dict()) == [
        "norm.weight",
        "norm.bias",
        "norm.running_mean",
        "norm.running_var",
        "norm.num_batches_tracked",
        "classifier.weight",
    ]


def test_training_learns_the_head_and_leaves_the_shift():
    loss = ReIDLoss(4, 3)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1, weight_decay=0.1)
    before = copy.deepcopy(loss.state_dict())
    loss(torch.randn(6, 4), torch.arange(6) % 3).backward()
    optimizer.step()
    changed = {name for name, value in loss.state_dict().items() if not value.equal(before[name])}
    assert changed == {
        "head.norm.weight",
        "head.norm.running_mean",
        "head.norm.running_var",
        "head.norm.num_batches_tracked",
        "head.classifier.weight",
    }


def test_head_in_evaluation_takes_one_sample_and_uses_running_statistics():
    head = IdentityHead(4, 3)
    for _ in range(200):
        head(torch.randn(64, 4) * 2 + 1)
    head.eval()
    sample = torch.randn(1, 4)
    expected = (sample - 1) / 2 @ head.classifier.weight.T
    torch.testing.assert_close(head(sample), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("count", [0, 1])
def test_head_refuses_a_batch_without_statistics(count):
    with pytest.raises(ValueError, match=f"at least 2 samples in training.*received {count}\\. Drop the last"):
        IdentityHead(4, 3)(torch.randn(count, 4))


@pytest.mark.parametrize("module", [IdentityHead, ReIDLoss])
def test_sizes_out_of_range(module):
    with pytest.raises(ValueError, match="dim must be at least 1; received 0"):
        module(0, 3)
    with pytest.raises(ValueError, match="num_identities must be at least 1; received 0"):
        module(4, 0)


def test_options_out_of_range():
    for smoothing in (-0.1, 1.0):
        with pytest.raises(ValueError, match=rf"smoothing must lie in \[0, 1\); received {smoothing}"):
            ReIDLoss(4, 3, smoothing=smoothing)
    with pytest.raises(ValueError, match=r"must not be negative; received identity_weight=-1\.0, triplet_weight=1\.0"):
        ReIDLoss(4, 3, identity_weight=-1.0)
    with pytest.raises(ValueError, match=r"must not be negative; received identity_weight=1\.0, triplet_weight=-2"):
        ReIDLoss(4, 3, triplet_weight=-2)


def test_features_of_another_width():
    with pytest.raises(ValueError, match=r"features must have width dim=4; received shape \(2, 5\)"):
        IdentityHead(4, 3)(torch.randn(2, 5))


def test_labels_beyond_the_identities_fail_on_the_cpu():
    with pytest.raises(IndexError, match="Target 3 is out of bounds"):
        ReIDLoss(4, 3)(torch.randn(2, 4), torch.tensor([0, 3]))


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32])
def test_labels_may_be_any_integers(dtype):
    features, labels = torch.randn(6, 4), torch.arange(6) % 3
    loss = ReIDLoss(4, 3)
    torch.testing.assert_close(loss(features, labels.to(dtype)), loss(features, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_reid_loss_in_half_precision_and_under_autocast(dtype, device):
    labels = torch.arange(8, device=device) % 4
    half = ReIDLoss(16, 4, device=device, dtype=dtype)
    features = torch.randn(8, 16, device=device, dtype=dtype, requires_grad=True)
    value = half(features, labels)
    value.backward()
    assert value.dtype == torch.float32
    gradients = [
        features.grad,
        *(parameter.grad for parameter in half.parameters() if parameter.requires_grad),
    ]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)

    full = ReIDLoss(16, 4, device=device)
    full.load_state_dict(half.state_dict())
    expected = full(features.detach().float(), labels)
    torch.testing.assert_close(value, expected, rtol=1e-2, atol=0)
    with torch.autocast(device, dtype):
        torch.testing.assert_close(full(features.detach(), labels), expected, rtol=1e-2, atol=0)


def test_identity_loss_of_half_precision_logits_is_computed_in_float32(device):
    loss = ReIDLoss(16, 4, triplet_weight=0.0, device=device, dtype=torch.float16).eval()
    torch.nn.init.normal_(loss.head.classifier.weight)
    features, labels = torch.randn(8, 16, device=device).half(), torch.arange(8, device=device) % 4
    expected = F.cross_entropy(loss.head(features).float(), labels, label_smoothing=0.1)
    torch.testing.assert_close(loss(features, labels), expected)


@pytest.mark.parametrize("margin", [None, 0.3])
def test_triplet_compiles_in_one_graph(margin):
    labels = torch.tensor([0, 1, 0, 2, 2, 1])
    compiled = torch.compile(batch_hard_triplet, fullgraph=True, backend="aot_eager")
    features = torch.randn(6, 4)
    actual = value_and_gradient(lambda x: compiled(x, labels, margin=margin), features)
    expected = value_and_gradient(lambda x: batch_hard_triplet(x, labels, margin=margin), features)
    torch.testing.assert_close(actual, expected)


def test_reid_loss_compiles_in_one_graph():
    loss, labels = ReIDLoss(4, 3), torch.tensor([0, 1, 0, 2, 2, 1])
    compiled = torch.compile(copy.deepcopy(loss), fullgraph=True, backend="aot_eager")
    features = torch.randn(6, 4)
    actual = value_and_gradient(lambda x: compiled(x, labels), features)
    torch.testing.assert_close(actual, value_and_gradient(lambda x: loss(x, labels), features))


@pytest.mark.parametrize("strict", [False, True])
def test_reid_loss_exports_with_a_dynamic_batch(strict):
    loss = ReIDLoss(4, 3).eval()
    batch = torch.export.Dim("batch", min=2, max=4096)
    inputs = (torch.randn(6, 4), torch.arange(6) % 3)
    program = torch.export.export(loss, inputs, dynamic_shapes=({0: batch}, {0: batch}), strict=strict)
    features, labels = torch.randn(9, 4), torch.arange(9) % 3
    torch.testing.assert_close(program.module()(features, labels), loss(features, labels))


def test_runs_on_the_meta_device_and_takes_values_later():
    loss = ReIDLoss(4, 3, device="meta")
    labels = torch.zeros(6, dtype=torch.int64, device="meta")
    assert loss(torch.randn(6, 4, device="meta"), labels).shape == ()
    loss = loss.to_empty(device="cpu")
    loss.reset_parameters()
    assert loss(torch.randn(6, 4), torch.arange(6) % 3).isfinite()
    assert not loss.head.norm.bias.requires_grad


def test_copies_keep_the_shift_frozen():
    loss = ReIDLoss(4, 3, margin=0.3)
    stream = io.BytesIO()
    torch.save(loss, stream)
    stream.seek(0)
    features, labels = torch.randn(6, 4), torch.arange(6) % 3
    expected = loss(features, labels)
    for twin in (copy.deepcopy(loss), torch.load(stream, weights_only=False)):
        assert not twin.head.norm.bias.requires_grad
        torch.testing.assert_close(twin(features, labels), expected)


def test_repr_can_be_pasted_back():
    loss = ReIDLoss(4, 3, margin=0.3, identity_weight=0.25)
    assert loss.extra_repr() == (
        "dim=4, num_identities=3, smoothing=0.1, margin=0.3, identity_weight=0.25, triplet_weight=1.0"
    )
    twin = eval(f"ReIDLoss({loss.extra_repr()})")
    assert twin.extra_repr() == loss.extra_repr()
    assert IdentityHead(4, 3).extra_repr() == "dim=4, num_identities=3"


def test_inputs_stay_untouched(device):
    features, labels = torch.randn(6, 4, device=device), torch.arange(6, device=device) % 3
    before = features.clone(), labels.clone()
    ReIDLoss(4, 3, device=device)(features, labels)
    assert features.equal(before[0])
    assert labels.equal(before[1])


def test_soft_margin_is_softplus_of_the_gap():
    features = torch.tensor([[0.0], [3.0], [1.0]])
    expected = F.softplus(torch.tensor([3.0 - 1.0, 3.0 - 2.0])).mean()
    torch.testing.assert_close(batch_hard_triplet(features, torch.tensor([0, 0, 1])), expected)
