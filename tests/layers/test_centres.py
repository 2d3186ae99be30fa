"""Moving centres: against loops, against the released arrays, and by the laws they obey."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import editor as reference
from stmi_layers import CentreAlignment, centre_alignment, move_centres
from vectors import MODALITIES, every, load, meta


def problem(batch: int, modalities: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, modalities, 4, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(0, 3, (batch,), generator=generator)
    return features, labels, torch.rand(batch, modalities, generator=generator) < 0.6


@given(
    st.integers(1, 5), st.integers(1, 3), st.sampled_from(["mean", "zero"]), st.booleans(), st.integers(0, 2**32 - 1)
)
def test_two_steps_match_the_loops(batch, modalities, start, complete, seed):
    layer = CentreAlignment(4, 3, modalities, rate=0.7, start=start, dtype=torch.float64)
    for step in range(2):
        features, labels, present = problem(batch, modalities, seed + step)
        present = present | complete
        before = layer.centres.clone(), layer.seen.clone()
        expected, centres = reference.centre_step(*before, features, labels.tolist(), present, 0.7)
        loss = layer(features, labels, None if complete else present)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(layer.centres, centres)
        expected = expected + 0 * features.sum()
        torch.testing.assert_close(torch.autograd.grad(loss, features), torch.autograd.grad(expected, features))


@every("editor_ocfr_*.npz")
def test_released_arrays(path):
    found = load(path)
    settings = meta(path)
    names = [name for name in MODALITIES if f"in.{name}" in found]
    dim = found["in.rgb"].shape[1]
    rate = settings["momentum"]
    layer = CentreAlignment(dim, settings["identities"], len(names), rate=rate, start="zero", dtype=torch.float64)
    close = {"rtol": 0, "atol": 1e-7}  # the released rate is rounded to float32
    for step in (1, 2):
        given_features = [(found[f"in.{name}"].double() + 0.5 * (step - 1)).requires_grad_() for name in names]
        loss = layer(torch.stack(given_features, dim=1), found["in.labels"])
        torch.testing.assert_close(loss, found[f"train{step}.out.loss"], **close)
        for number, name in enumerate(names):
            torch.testing.assert_close(layer.centres[number], found[f"train{step}.after.centers.{name}"], **close)
        expected = [found[f"train{step}.grad.in.{name}"] for name in names]
        torch.testing.assert_close(list(torch.autograd.grad(loss, given_features)), expected, **close)


@given(st.randoms(use_true_random=False), st.integers(0, 2**32 - 1))
def test_the_order_of_the_batch_does_not_matter(random, seed):
    features, labels, present = problem(6, 2, seed)
    order = list(range(6))
    random.shuffle(order)
    results = []
    for rows in (list(range(6)), order):
        layer = CentreAlignment(4, 3, 2, dtype=torch.float64)
        loss = layer(features[rows], labels[rows], present[rows])
        results.append((loss, layer.centres, *torch.autograd.grad(loss, features)))
    torch.testing.assert_close(results[0], results[1])


def test_names_of_identities_do_not_matter():
    features, labels, present = problem(6, 2, 3)
    other = torch.tensor([2, 0, 1])
    losses = [CentreAlignment(4, 3, 2)(features.float(), item, present) for item in (labels, other[labels])]
    torch.testing.assert_close(losses[0], losses[1])


def test_a_first_centre_can_be_reached():
    """Features that agree have no loss at first sight; the released start at zero leaves (1 - rate)^2 / dim."""
    features = torch.tensor([[[3.0, 4.0]], [[0.6, 0.8]]])
    labels = torch.tensor([1, 1])
    torch.testing.assert_close(CentreAlignment(2, 3, 1)(features, labels), torch.tensor(0.0))
    loss = CentreAlignment(2, 3, 1, start="zero")(features, labels)
    torch.testing.assert_close(loss, torch.tensor(0.2**2 / 2))


def test_absent_slots_change_nothing():
    features, labels, present = problem(5, 3, 1)
    broken = torch.where(present[..., None], features.detach(), torch.nan).requires_grad_()
    results = []
    for leaf in (features, broken):
        layer = CentreAlignment(4, 3, 3, dtype=torch.float64)
        loss = layer(leaf, labels, present)
        results.append((loss, layer.centres, layer.seen, *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert not results[0][3][~present].any()


def test_evaluation_leaves_the_centres_alone():
    features, labels, _ = problem(4, 2, 0)
    layer = CentreAlignment(4, 3, 2, dtype=torch.float64)
    layer(features, labels)
    before = layer.centres.clone()
    expected = centre_alignment(features, labels, before)
    torch.testing.assert_close(layer.eval()(features + 0, labels), expected)
    assert torch.equal(layer.centres, before)


def test_gradcheck_and_the_side_of_the_gradient():
    features, labels, present = problem(3, 2, 0)
    centres = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda features, centres: centre_alignment(features, labels, centres, present), (features, centres)
    )
    moved, seen = move_centres(centres, torch.ones(2, 3, dtype=torch.bool), features, labels)
    assert not moved.requires_grad
    assert seen.all()


def test_an_unseen_identity_stays_unseen():
    features, _, _ = problem(2, 2, 0)
    layer = CentreAlignment(4, 3, 2, dtype=torch.float64)
    layer(features, torch.tensor([0, 2]), torch.tensor([[True, False], [True, True]]))
    assert layer.seen.tolist() == [[True, False, True], [False, False, True]]
    assert not layer.centres[~layer.seen].any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_many_samples_of_one_identity_in_half_precision(dtype):
    """Sums of thousands of half-precision features do not stop at 256."""
    features = torch.ones(4096, 1, 4, dtype=dtype)
    layer = CentreAlignment(4, 2, 1, dtype=dtype)
    loss = layer(features, torch.zeros(4096, dtype=torch.long))
    assert loss.dtype == torch.float32
    torch.testing.assert_close(layer.centres[0, 0].float(), torch.full((4,), 0.5), rtol=1e-2, atol=0)


def test_empty_and_absent_batches():
    features, labels, _ = problem(3, 2, 0)
    layer = CentreAlignment(4, 3, 2, dtype=torch.float64)
    for rows, present in ((0, None), (3, torch.zeros(3, 2, dtype=torch.bool))):
        loss = layer(features[:rows], labels[:rows], present)
        assert loss == 0
        assert not torch.autograd.grad(loss, features)[0].any()
    assert not layer.seen.any()


def test_compiled_training_step():
    features, labels, present = problem(4, 2, 0)
    layer, twin = (CentreAlignment(4, 3, 2, dtype=torch.float64) for _ in range(2))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(features, labels, present), twin(features, labels, present))
    torch.testing.assert_close(layer.centres, twin.centres)


def test_refusals():
    with pytest.raises(ValueError, match=r"rate must be a probability in \[0, 1\]; received 1.5"):
        CentreAlignment(4, 3, 2, rate=1.5)
    with pytest.raises(ValueError, match="start must be one of 'mean', 'zero'"):
        CentreAlignment(4, 3, 2, start="ones")
    with pytest.raises(ValueError, match="num_identities must be at least 1; received 0"):
        CentreAlignment(4, 0, 2)
    features, labels, _ = problem(2, 2, 0)
    with pytest.raises(ValueError, match="features must have width dim=4 and num_modalities=3; received shape"):
        CentreAlignment(4, 3, 3)(features, labels)
    buffers = torch.zeros(2, 3, 4, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"rate must be a probability in \[0, 1\]; received -1"):
        move_centres(*buffers, features, labels, rate=-1)
