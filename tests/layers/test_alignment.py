"""Gram alignment: against loops, against the released arrays, and by the laws it obeys."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from examples.signal_reid.released import log_excess, released_state
from reference import alignment as reference
from stmi_layers.alignment import GramAlignment, gram_alignment_loss
from stmi_layers.volume import gram_volume
from vectors import MODALITIES, assert_equal, every, load, part, stacked

SIZES = st.tuples(st.integers(1, 4), st.integers(2, 4), st.integers(5, 7), st.integers(0, 2**32 - 1))


def problem(batch: int = 4, modalities: int = 3, dim: int = 6, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features, temperature, `present` and labels."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, modalities, dim, generator=generator, dtype=torch.float64).requires_grad_()
    present = torch.rand(batch, modalities, generator=generator) < 0.7
    labels = torch.randint(0, 3, (batch,), generator=generator)
    return features, torch.tensor(0.3, dtype=torch.float64).requires_grad_(), present, labels


def with_gradients(result: Tensor, leaves) -> list[Tensor]:
    return [result.detach(), *torch.autograd.grad(result, leaves, materialize_grads=True, allow_unused=True)]


@given(SIZES, st.sampled_from([None, 0, 1]), st.booleans(), st.booleans(), st.booleans())
def test_loss_matches_the_loops(sizes, anchor, missing, known, equalise):
    features, temperature, present, labels = problem(*sizes)
    batch, modalities = sizes[:2]
    options = {"present": present if missing else None, "labels": labels if known else None}
    actual = gram_alignment_loss(features, temperature, anchor=anchor, equalise=equalise, **options)
    anchors = list(range(modalities)) if anchor is None else [anchor]
    there = present if missing else torch.ones_like(present)
    names = labels if known else torch.arange(batch)
    expected = reference.gram_alignment_loss(features, temperature, anchors, there, names, 0.1, equalise)
    leaves = [features, temperature]
    torch.testing.assert_close(with_gradients(actual, leaves), with_gradients(expected, leaves), rtol=1e-6, atol=1e-7)


def test_gradcheck():
    features, temperature, present, labels = problem(batch=3, modalities=4)

    def loss(features: Tensor, temperature: Tensor) -> Tensor:
        return gram_alignment_loss(features, temperature, present=present, labels=labels)

    assert torch.autograd.gradcheck(loss, (features, temperature))


@given(SIZES, st.randoms(use_true_random=False))
def test_laws(sizes, random):
    features, temperature, present, labels = problem(*sizes)
    batch, modalities, dim, seed = sizes
    expected = gram_alignment_loss(features, temperature, present=present, labels=labels)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    scale = 0.1 + torch.rand(batch, modalities, 1, generator=generator, dtype=torch.float64)
    moved = scale * features @ rotation
    torch.testing.assert_close(gram_alignment_loss(moved, temperature, present=present, labels=labels), expected)
    order = random.sample(range(modalities), modalities)
    torch.testing.assert_close(
        gram_alignment_loss(features[:, order], temperature, present=present[:, order], labels=labels), expected
    )
    order = random.sample(range(batch), batch)
    torch.testing.assert_close(
        gram_alignment_loss(features[order], temperature, present=present[order], labels=7 - labels[order]), expected
    )


def test_one_sample_one_modality_and_one_identity_have_nothing_to_learn():
    for features, options in (
        (problem(batch=1)[0], {}),
        (problem(modalities=1)[0], {}),
        (problem(batch=0)[0], {}),
        (problem()[0], {"present": torch.eye(4, 3, dtype=torch.bool)}),
        (problem()[0], {"labels": torch.zeros(4, dtype=torch.long)}),
    ):
        temperature = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        loss, *gradients = with_gradients(
            gram_alignment_loss(features, temperature, **options), [features, temperature]
        )
        assert loss == 0
        assert all(gradient.abs().sum() < 1e-14 for gradient in gradients)


def test_all_present_is_no_mask_and_distinct_labels_are_no_labels():
    features, temperature, present, _ = problem()
    expected = gram_alignment_loss(features, temperature)
    everything = {"present": torch.ones_like(present), "labels": torch.arange(4)}
    torch.testing.assert_close(gram_alignment_loss(features, temperature, **everything), expected)


def test_equalised_volumes_of_fewer_modalities_compare():
    """Samples alike but for a missing modality: with equal narrowness per modality they get the same volume."""
    sine, cosine = 0.6, 0.8
    sample = torch.tensor([[1.0, 0.0, 0.0], [cosine, sine, 0.0], [cosine, 0.0, sine]])
    features, present = torch.stack([sample, sample]), torch.tensor([[True, True, True], [True, True, False]])
    equal = gram_alignment_loss(features, 0.1, anchor=0, present=present, smoothing=0.0)
    torch.testing.assert_close(equal, torch.tensor(2.0).log())  # all volumes are the square of the sine
    raw = gram_alignment_loss(features, 0.1, anchor=0, present=present, smoothing=0.0, equalise=False)
    gap = (sine - sine**2) / 0.1  # the volumes of one row; those of a column are equal
    rows = (math.log1p(math.exp(-gap)) + math.log1p(math.exp(gap))) / 2
    assert raw.item() == pytest.approx((rows + math.log(2)) / 2, rel=1e-5)


def test_aligned_modalities_have_a_lower_loss_and_training_aligns_them():
    torch.manual_seed(0)
    features = torch.randn(8, 3, 16, requires_grad=True)
    alignment = GramAlignment(learn_temperature=False)
    optimizer = torch.optim.Adam([features], lr=0.05)
    first = alignment(features[:, :, None]).item()
    for _ in range(50):
        optimizer.zero_grad()
        alignment(features[:, :, None]).backward()
        assert features.grad is not None
        assert features.grad.isfinite().all()
        optimizer.step()
    volume = gram_volume(F.normalize(features.detach(), dim=-1))
    assert alignment(features[:, :, None]).item() < first - 0.5
    assert volume.diagonal().mean() < 0.75 * volume.mean()


@pytest.mark.parametrize("cosine", [0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_half_and_single_precision_are_near_double(cosine, dtype, device):
    torch.manual_seed(1)
    noise = math.sqrt(1 / cosine - 1)
    features = torch.randn(16, 1, 64) + noise * torch.randn(16, 3, 64)
    features = features.to(device, dtype).requires_grad_()
    labels = torch.arange(16, device=device) // 4
    expected = gram_alignment_loss(features.double(), 0.07, labels=labels)
    actual = gram_alignment_loss(features, 0.07, labels=labels)
    assert actual.dtype == torch.float32
    assert (actual.double() - expected).abs() < 1e-5
    (gradient,) = torch.autograd.grad(actual, features)
    assert gradient.isfinite().all()


def test_nearly_equal_samples_keep_finite_losses_and_gradients(device):
    """An image twice in a batch: volumes across samples are as small as those within."""
    torch.manual_seed(0)
    image = torch.randn(1, 3, 64, device=device)
    for noise in (0.0, 1e-7, 1e-4, 1e-2):
        features = (image + noise * torch.randn(6, 3, 64, device=device)).requires_grad_()
        actual = gram_alignment_loss(features, 0.07)
        expected = gram_alignment_loss(features.double(), 0.07)
        assert (actual.double() - expected).abs() < 1e-4
        assert torch.autograd.grad(actual, features)[0].isfinite().all()


@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e30])
def test_what_stands_in_an_absent_slot_does_not_matter(filler):
    present = torch.tensor([[True, True, False], [False, True, True], [True, False, False], [False, False, False]])
    alignment = GramAlignment(dtype=torch.float64)

    def found(filler: float) -> list[Tensor]:
        patches = problem()[0].detach()[:, :, None] * torch.tensor([1.0, 0.5])[:, None]
        patches = torch.where(present[..., None, None], patches, filler).requires_grad_()
        return with_gradients(alignment(patches, present), [patches, alignment.log_excess])

    expected = found(0.0)
    assert all(item.isfinite().all() for item in expected)
    assert expected[0] > 0
    torch.testing.assert_close(found(filler), expected, rtol=0, atol=0)


def test_temperature_stays_above_its_floor():
    alignment = GramAlignment(0.05, min_temperature=0.02)
    assert alignment.temperature.item() == pytest.approx(0.05)
    for value in (-1e4, -50.0):
        torch.nn.init.constant_(alignment.log_excess, value)
        assert alignment.temperature.item() == pytest.approx(0.02)
        loss = alignment(torch.randn(4, 3, 2, 8))
        assert loss.isfinite()
    assert not GramAlignment(learn_temperature=False).log_excess.requires_grad


def test_alignment_of_patches_is_the_loss_of_their_mean():
    patches, (_, _, present, labels) = torch.randn(4, 3, 5, 6), problem()
    alignment = GramAlignment(0.1, anchor=1, smoothing=0.2, equalise=False)
    options = {"anchor": 1, "smoothing": 0.2, "equalise": False, "present": present, "labels": labels}
    expected = gram_alignment_loss(patches.mean(dim=2), 0.1, **options)
    torch.testing.assert_close(alignment(patches, present, labels), expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smoothing": 1.0}, r"smoothing must lie in \[0, 1\); received 1.0"),
        ({"temperature": 0.0}, "temperature must be finite and above 0; received 0.0"),
        ({"temperature": math.nan}, "temperature must be finite and above 0; received nan"),
        ({"min_temperature": 0.07}, "min_temperature must lie above 0 and below temperature; received"),
        ({"min_temperature": 0.0}, "min_temperature must lie above 0 and below temperature; received"),
    ],
)
def test_layer_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        GramAlignment(**options)


def test_loss_refuses():
    features = problem()[0]
    with pytest.raises(ValueError, match="anchor must be the index of a modality, 0 to 2; received 3"):
        gram_alignment_loss(features, 0.1, anchor=3)
    with pytest.raises(ValueError, match=r"temperature must be finite and above 0; received -0\.1"):
        gram_alignment_loss(features, -0.1)
    with pytest.raises(ValueError, match="smoothing must lie in"):
        gram_alignment_loss(features, 0.1, smoothing=-0.1)


# The released arrays


def close_tolerance(path) -> float | None:
    """Nearly equal modalities: the released determinant lost these digits."""
    return 1e-6 if "close" in path.stem else None


@every("signal_gam_*.npz")
def test_released_loss(path):
    arrays = load(path)
    patches = stacked(arrays, "input/patches_{}").requires_grad_()
    temperature = arrays["param/contra_temp"].to(patches.dtype).requires_grad_()
    tolerance = close_tolerance(path)
    for mode in ("eval", "train"):
        loss = gram_alignment_loss(patches.mean(dim=2), temperature, anchor=0)
        assert_equal(loss.detach(), arrays[f"{mode}/loss"], tolerance)
        of_patches, of_temperature = torch.autograd.grad(loss, [patches, temperature])
        for index, modality in enumerate(MODALITIES):
            expected = arrays[f"{mode}/grad_patches_{modality}"]
            if expected.isfinite().all():
                assert_equal(of_patches[:, index], expected, tolerance)
        assert_equal(of_temperature, arrays[f"{mode}/grad_contra_temp"], tolerance)
    features = F.normalize(patches.detach().mean(dim=2), dim=-1)
    assert_equal(features, stacked(arrays, "step/feature_{}"))


@every("signal_lam_*.npz")
def test_released_loss_beside_the_local_one(path):
    arrays = load(path)
    patches = stacked(arrays, "input/patches_{}")
    alignment = GramAlignment(anchor=0, dtype=patches.dtype)
    state = part(released_state(part(arrays, "param/")), "global_alignment.")
    alignment.load_state_dict({name: value.to(patches.dtype) for name, value in state.items()})
    assert_equal(alignment(patches).detach(), arrays["eval/loss_gam"])


@every("signal_general_*.npz")
def test_loss_of_any_number_of_modalities(path):
    arrays = load(path)
    patches, present = arrays["input/patches"].requires_grad_(), arrays["present"].bool()
    for name in {name.split("/")[1] for name in arrays if name.startswith("gam/")}:
        expected = part(arrays, f"gam/{name}/")
        anchor, equalise = int(name.removeprefix("anchor").removesuffix("_raw")), not name.endswith("_raw")
        options = {"anchor": anchor, "present": present, "equalise": equalise}
        loss = gram_alignment_loss(patches.mean(dim=2), 0.07, **options)
        assert_equal(loss.detach(), expected["output"])
        (gradient,) = torch.autograd.grad(loss * expected["cotangent"], patches)
        assert_equal(gradient, expected["grad_patches"])


def test_released_temperature_must_exceed_the_smallest():
    assert log_excess(torch.tensor(0.07), 0.01).item() == pytest.approx(math.log(0.06))
    with pytest.raises(ValueError, match="min_temperature must lie below the released temperature"):
        log_excess(torch.tensor(0.005), 0.01)
