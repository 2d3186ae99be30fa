"""Image-text alignment and token-level identity: against loops, torch's cross-entropy, and their laws."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import segtext as reference
from stmi_layers.text_alignment import (
    ImageTextAlignment,
    TokenIdentityLoss,
    image_text_alignment_loss,
    token_identity_loss,
)

seeds = st.integers(0, 2**32 - 1)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def same(actual: Tensor, expected: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(actual, expected)
    found = torch.autograd.grad(actual, leaves, materialize_grads=True)
    torch.testing.assert_close(found, torch.autograd.grad(expected, leaves, materialize_grads=True))


@given(st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=5), seeds)
def test_alignment_matches_the_loops(rows, seed):
    labels, present = [label for label, _ in rows], [True, *(there for _, there in rows[1:])]
    image, text, temperature = normal(len(rows), 3, seed=seed), normal(len(rows), 3, seed=seed + 1), normal()
    positive = temperature.detach().abs() + 0.1
    positive.requires_grad_()
    options = {"temperature": positive, "present": torch.tensor(present)}
    actual = image_text_alignment_loss(image, text, torch.tensor(labels), **options)
    same(actual, reference.image_text_alignment(image, text, labels, positive, present), [image, text, positive])


def test_without_labels_it_is_symmetric_info_nce():
    image, text = normal(5, 4), normal(5, 4, seed=1)
    logits = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T / 0.07
    right = torch.arange(5)
    expected = (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
    same(image_text_alignment_loss(image, text), expected, [image, text])
    torch.testing.assert_close(image_text_alignment_loss(image, text, right), expected)


def test_the_names_of_identities_and_the_order_of_pairs_do_not_matter():
    image, text, labels = normal(6, 4), normal(6, 4, seed=1), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = image_text_alignment_loss(image, text, labels)
    torch.testing.assert_close(image_text_alignment_loss(image, text, 7 - 3 * labels), expected)
    order = torch.randperm(6)
    torch.testing.assert_close(image_text_alignment_loss(image[order], text[order], labels[order]), expected)
    torch.testing.assert_close(image_text_alignment_loss(text, image, labels), expected)
    torch.testing.assert_close(image_text_alignment_loss(2 * image, 3 * text, labels), expected)


def test_texts_of_one_identity_are_no_negatives():
    """With equal features per identity the least possible loss is log K, and only with labels is it a minimum."""
    labels = torch.arange(3).repeat_interleave(2)
    features = torch.eye(3, dtype=torch.float64)[labels].requires_grad_()
    loss = image_text_alignment_loss(features, features, labels, temperature=0.01)
    assert loss.item() == pytest.approx(torch.tensor(2.0).log().item(), abs=1e-6)


@pytest.mark.parametrize("garbage", [0.0, 1e300, float("inf"), float("nan")])
def test_a_missing_text_is_inert(garbage):
    image, text, labels = normal(4, 3), normal(4, 3, seed=1), torch.tensor([0, 0, 1, 1])
    present = torch.tensor([True, False, True, True])
    kept = present.nonzero().flatten()
    expected = image_text_alignment_loss(image[kept], text[kept], labels[kept])
    broken = torch.where(present[:, None], text, garbage).detach().requires_grad_()
    actual = image_text_alignment_loss(image, broken, labels, present=present)
    torch.testing.assert_close(actual, expected)
    found = torch.autograd.grad(actual, [image, broken])
    assert all(gradient.isfinite().all() for gradient in found)
    assert not any(gradient[1].any() for gradient in found)


def test_nothing_present_costs_nothing():
    image, text = normal(3, 4), normal(3, 4, seed=1)
    loss = image_text_alignment_loss(image, text, present=torch.zeros(3, dtype=torch.bool))
    assert loss == 0
    assert not any(gradient.any() for gradient in torch.autograd.grad(loss, [image, text]))
    assert image_text_alignment_loss(normal(0, 4), normal(0, 4)) == 0


def test_the_temperature_stays_positive_under_any_step():
    alignment = ImageTextAlignment(0.07)
    image, text = torch.randn(4, 8), torch.randn(4, 8)
    optimizer = torch.optim.SGD(alignment.parameters(), lr=1e3)
    alignment(image, text).backward()
    optimizer.step()
    assert alignment.log_temperature.exp() >= 0
    assert alignment.log_temperature.item() != pytest.approx(torch.tensor(0.07).log().item())
    fresh = ImageTextAlignment(0.5).double()
    torch.testing.assert_close(
        fresh(image.double(), text.double()), image_text_alignment_loss(image.double(), text.double(), temperature=0.5)
    )


@given(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), seeds)
def test_token_identity_matches_the_loops(tokens, queries, targets, seed):
    generator = torch.Generator().manual_seed(seed)
    of_queries, of_targets = (torch.randint(0, 3, (count,), generator=generator) for count in (queries, targets))
    present = torch.rand(queries, tokens, generator=generator) < 0.7
    first, second = normal(queries, tokens, 3, seed=seed), normal(targets, tokens, 3, seed=seed + 1)
    actual = token_identity_loss(first, second, of_queries, of_targets, temperature=0.3, present=present)
    expected = reference.token_identity(first, second, of_queries.tolist(), of_targets.tolist(), 0.3, present)
    same(actual, expected, [first, second])


def test_tokens_meet_their_own_kind_alone():
    first, second, labels = normal(4, 2, 3), normal(4, 2, 3, seed=1), torch.tensor([0, 0, 1, 1])
    each = [token_identity_loss(first[:, [k]], second[:, [k]], labels, labels) for k in range(2)]
    torch.testing.assert_close(token_identity_loss(first, second, labels, labels), torch.stack(each).mean())


@pytest.mark.parametrize("garbage", [0.0, float("inf"), float("nan")])
def test_a_token_that_a_query_lacks_is_inert(garbage):
    first, second, labels = normal(3, 2, 4), normal(3, 2, 4, seed=1), torch.tensor([0, 0, 1])
    present = torch.tensor([[True, False], [True, True], [False, True]])
    expected = token_identity_loss(first, second, labels, labels, present=present)
    broken = torch.where(present[..., None], first, garbage).detach().requires_grad_()
    actual = token_identity_loss(broken, second, labels, labels, present=present)
    assert torch.equal(actual, expected)
    gradients = torch.autograd.grad(actual, [broken, second])
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert not gradients[0][~present].any()


def test_coupling_adds_the_distance_from_the_mask():
    first, second, labels = normal(3, 2, 4), normal(3, 2, 4, seed=1), torch.tensor([0, 0, 1])
    patches, mask = normal(3, 5, 4, seed=2), torch.rand(3, 5).double()
    identity = token_identity_loss(first, second, labels, labels, temperature=0.2)
    coupled = TokenIdentityLoss(0.2, coupling=3.0)(first, second, labels, patches, mask)
    expected = identity + 3 * reference.mask_coupling(second, patches, mask)
    same(coupled, expected, [first, second, patches])
    assert torch.equal(TokenIdentityLoss(0.2, coupling=0.0)(first, second, labels, patches, mask), identity)


def test_gradcheck():
    labels = torch.tensor([0, 0, 1])
    assert torch.autograd.gradcheck(
        lambda *features: image_text_alignment_loss(*features, labels), (normal(3, 4), normal(3, 4, seed=1))
    )
    tokens = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    assert torch.autograd.gradcheck(lambda *pair: token_identity_loss(*pair, labels, labels), tokens)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperatures_refused(temperature):
    tokens, labels = torch.randn(2, 1, 4), torch.tensor([0, 1])
    calls = (
        lambda: ImageTextAlignment(temperature),
        lambda: TokenIdentityLoss(temperature),
        lambda: image_text_alignment_loss(tokens[:, 0], tokens[:, 0], temperature=temperature),
        lambda: token_identity_loss(tokens, tokens, labels, labels, temperature=temperature),
    )
    for call in calls:
        with pytest.raises(ValueError, match="temperature must be a finite number above 0; received"):
            call()


def test_negative_coupling_is_refused():
    with pytest.raises(ValueError, match=r"coupling must be at least 0; received -0.5"):
        TokenIdentityLoss(coupling=-0.5)
