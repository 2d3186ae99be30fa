"""Volumes: against determinants, against the released arrays, and by geometry where determinants are inexact."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reference import alignment as reference
from stmi_layers.kernels.volume import ExchangedVolumes, exchanged_volumes
from stmi_layers.volume import gram_volume
from vectors import assert_equal, every, load

SIZES = st.tuples(st.integers(1, 4), st.integers(2, 5), st.integers(5, 8), st.integers(0, 2**32 - 1))


def features(batch: int = 3, modalities: int = 3, dim: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, modalities, dim, generator=generator, dtype=torch.float64).requires_grad_()


def gaps(batch: int, modalities: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, modalities, generator=torch.Generator().manual_seed(seed)) < 0.6


def with_gradient(result: Tensor, leaf: Tensor) -> list[Tensor]:
    weights = torch.linspace(-1, 2, result.numel(), dtype=result.dtype).reshape(result.shape)
    return [result.detach(), *torch.autograd.grad((result * weights).sum(), leaf, materialize_grads=True)]


@given(SIZES, st.integers(0, 4), st.booleans())
def test_volume_is_the_root_of_the_determinant(sizes, anchor, missing):
    vectors, anchor = features(*sizes), anchor % sizes[1]
    present = gaps(*sizes[:2], sizes[3]) if missing else None
    everything = torch.ones(sizes[:2], dtype=torch.bool)
    actual = gram_volume(vectors, anchor=anchor, present=present)
    expected = reference.volumes(vectors, anchor, everything if present is None else present)
    torch.testing.assert_close(with_gradient(actual, vectors), with_gradient(expected, vectors), rtol=1e-6, atol=1e-7)


@given(SIZES)
def test_kernel_is_its_readable_twin(sizes):
    batch, modalities, _, seed = sizes
    present = gaps(batch, modalities, seed)
    for masks in (None, present):
        leaf = features(*sizes).detach()
        leaf = leaf if masks is None else torch.where(masks[..., None], leaf, 0.0)
        leaf.requires_grad_()
        found, expected = (
            with_gradient(volume(leaf, seed % modalities, masks)[0], leaf)
            for volume in (ExchangedVolumes.apply, exchanged_volumes)
        )
        torch.testing.assert_close(found, expected)


def test_gradcheck():
    present = torch.tensor([[True, True, True, True], [True, False, True, True], [False, True, False, True]])
    vectors = features(modalities=4)
    for anchor in range(4):
        assert torch.autograd.gradcheck(lambda vectors, anchor=anchor: gram_volume(vectors, anchor=anchor), vectors)
        options = {"anchor": anchor, "present": present}
        assert torch.autograd.gradcheck(lambda vectors, options=options: gram_volume(vectors, **options), vectors)


@given(SIZES)
def test_laws_of_geometry(sizes):
    batch, modalities, dim, seed = sizes
    vectors = features(*sizes).detach()
    volume = gram_volume(vectors)
    generator = torch.Generator().manual_seed(seed)
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    torch.testing.assert_close(gram_volume(vectors @ rotation), volume)
    signs = torch.randint(0, 2, (batch, modalities, 1), generator=generator) * 2.0 - 1
    torch.testing.assert_close(gram_volume(vectors * signs), volume)
    others = [0, *(1 + torch.randperm(modalities - 1, generator=generator)).tolist()]
    torch.testing.assert_close(gram_volume(vectors[:, others]), volume)
    torch.testing.assert_close(gram_volume(3 * vectors), 3**modalities * volume)
    for anchor in range(modalities):  # a sample's own volume is the same for every anchor
        torch.testing.assert_close(gram_volume(vectors, anchor=anchor).diagonal(), volume.diagonal())
    units = gram_volume(F.normalize(vectors, dim=-1))
    assert (units >= 0).all()
    assert (units <= 1 + 1e-12).all()


def test_orthonormal_vectors_span_one_and_two_vectors_a_sine():
    torch.testing.assert_close(gram_volume(torch.eye(5)[None]), torch.ones(1, 1))
    angles = torch.tensor([0.0, 1e-3, 0.5, 2.0, math.pi / 2], dtype=torch.float64)
    other = torch.stack([angles.cos(), angles.sin()], dim=-1)
    vectors = torch.stack([torch.tensor([1.0, 0.0], dtype=torch.float64).expand(5, 2), other], dim=1)
    torch.testing.assert_close(gram_volume(vectors), angles.sin().expand(5, 5))


def near(closeness: float, modalities: int, seed: int = 0) -> Tensor:
    """Unit vectors per sample that differ by `closeness`, as float32 numbers held in float64."""
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(6, 1, 64, generator=generator, dtype=torch.float64)
    own = closeness * torch.randn(6, modalities, 64, generator=generator, dtype=torch.float64)
    return F.normalize(common + own, dim=-1).float().double()


def own_volumes(vectors: Tensor) -> Tensor:
    """Volume of each sample as a product of singular values, of differences that are scaled to unit length first."""
    base, rest = vectors[:, :1], vectors[:, 1:] - vectors[:, :1]
    lengths = rest.norm(dim=-1, keepdim=True)
    return torch.linalg.svdvals(torch.cat([base, rest / lengths], dim=1)).prod(dim=-1) * lengths.prod(dim=1).squeeze(1)


@pytest.mark.parametrize("modalities", [2, 3, 4])
@pytest.mark.parametrize("closeness", [1.0, 1e-1, 1e-2, 1e-3, 1e-4])
def test_float32_keeps_the_digits_of_near_vectors(closeness, modalities):
    exact = near(closeness, modalities).requires_grad_()
    own = gram_volume(exact).diagonal()
    torch.testing.assert_close(own, own_volumes(exact), rtol=1e-9, atol=0)
    rounded = exact.detach().float().requires_grad_()
    found = gram_volume(rounded)
    assert (found.diagonal() / own - 1).abs().max() < 3e-6
    gradient, expected = (
        torch.autograd.grad(volume.diagonal().sum() / volume.detach().diagonal().mean(), leaf)[0]
        for volume, leaf in ((found, rounded), (gram_volume(exact), exact))
    )
    assert (gradient - expected).norm() < 3e-5 * expected.norm() / min(1.0, 100 * closeness)


@given(st.integers(2, 4), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_gradient_is_bounded_by_one(modalities, closeness, seed):
    vectors = near(closeness, modalities, seed).float().requires_grad_()
    volume = gram_volume(vectors)
    for i, j in itertools.product(range(2), repeat=2):
        (gradient,) = torch.autograd.grad(volume[i, j], vectors, retain_graph=True)
        assert gradient.isfinite().all()
        assert gradient.norm(dim=-1).max() < 1 + 1e-3


DEGENERATE = {
    "equal modalities": lambda: torch.randn(3, 1, 8).expand(3, 4, 8),
    "equal samples": lambda: torch.randn(1, 4, 8).expand(3, 4, 8),
    "everything equal": lambda: torch.randn(8).expand(3, 4, 8),
    "two equal modalities": lambda: torch.randn(3, 4, 8)[:, [0, 1, 1, 2]],
    "anchor equals another": lambda: torch.randn(3, 4, 8)[:, [0, 1, 2, 0]],
    "opposite": lambda: torch.randn(3, 1, 8) * torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None],
    "zero": lambda: torch.zeros(3, 4, 8),
    "a zero modality": lambda: torch.randn(3, 4, 8) * torch.tensor([1.0, 0.0, 1.0, 1.0])[:, None],
    "anchor in the span of the others": lambda: torch.randn(3, 4, 8) @ torch.ones(8, 8),
    "more modalities than dimensions": lambda: torch.randn(3, 4, 3),
    "tiny": lambda: 1e-12 * torch.randn(3, 4, 8),
    "huge": lambda: 1e8 * torch.randn(3, 4, 8),
}


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("missing", [False, True])
def test_degenerate_features_have_finite_volumes_and_gradients(name, missing, device):
    vectors = DEGENERATE[name]().to(device).requires_grad_()
    present = gaps(3, 4).to(device) if missing else None
    for anchor in range(4):
        volume = gram_volume(vectors, anchor=anchor, present=present)
        assert (volume >= 0).all()
        assert volume.isfinite().all()
        (gradient,) = torch.autograd.grad(volume.sum(), vectors)
        assert gradient.isfinite().all()


def test_equal_modalities_span_nothing_and_pull_nowhere():
    vectors = F.normalize(torch.randn(3, 1, 8), dim=-1).repeat(1, 3, 1).requires_grad_()
    volume = gram_volume(vectors)
    assert not volume.any()  # the others of every sample are equal
    (gradient,) = torch.autograd.grad(volume.sum(), vectors)
    assert not gradient.any()
    pair = vectors[:, :2]
    own = gram_volume(pair).diagonal()
    assert not own.any()
    assert not torch.autograd.grad(own.sum(), vectors)[0].any()


@pytest.mark.parametrize("filler", [math.nan, math.inf, 1e30])
def test_what_stands_in_an_absent_slot_does_not_matter(filler):
    present = torch.tensor([[True, True, False], [False, True, True], [True, False, False], [False, False, False]])

    def found(filler: float, anchor: int) -> list[Tensor]:
        vectors = torch.where(present[..., None], features(4).detach(), filler).requires_grad_()
        return with_gradient(gram_volume(vectors, anchor=anchor, present=present), vectors)

    for anchor in range(3):
        expected = found(0.0, anchor)
        assert all(item.isfinite().all() for item in expected)
        torch.testing.assert_close(found(filler, anchor), expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype, device):
    vectors = features(4).detach().to(device, dtype)
    expected = gram_volume(vectors.float())
    assert torch.equal(gram_volume(vectors), expected)
    with torch.autocast(device, dtype=torch.bfloat16):
        assert torch.equal(gram_volume(vectors.float()), expected)


def test_empty_batch():
    assert gram_volume(torch.zeros(0, 3, 4)).shape == (0, 0)


def test_function_transforms():
    vectors = features().detach()

    def loss(vectors: Tensor) -> Tensor:
        return gram_volume(vectors).square().sum()

    leaf = vectors.clone().requires_grad_()
    torch.testing.assert_close(torch.func.grad(loss)(vectors), torch.autograd.grad(loss(leaf), leaf)[0])
    stack = torch.stack([vectors, vectors.flip(0)])
    found = torch.func.vmap(torch.func.grad(loss))(stack)
    torch.testing.assert_close(found, torch.stack([torch.func.grad(loss)(item) for item in stack]))


def test_a_second_derivative_is_refused():
    vectors = features()
    (gradient,) = torch.autograd.grad(gram_volume(vectors).sum(), vectors, create_graph=True)
    with pytest.raises(NotImplementedError, match="gram_volume can be differentiated only once"):
        torch.autograd.grad(gradient.square().sum(), vectors)


def test_refuses():
    with pytest.raises(ValueError, match=r"features must hold at least 2 modalities; received shape \(3, 1, 6\)"):
        gram_volume(features(modalities=1))
    for anchor in (-1, 3):
        with pytest.raises(ValueError, match=f"anchor must be the index of a modality, 0 to 2; received {anchor}"):
            gram_volume(features(), anchor=anchor)


@every("signal_volume_*.npz")
def test_released_volumes(path):
    arrays = load(path)
    for modalities in {name.split("/")[0] for name in arrays if name.startswith("m") and "/" in name}:
        if f"{modalities}/features" not in arrays:
            continue
        vectors = arrays[f"{modalities}/features"].transpose(0, 1).requires_grad_()
        volume = gram_volume(vectors)
        assert_equal(volume.detach(), arrays[f"{modalities}/volume"])
        (gradient,) = torch.autograd.grad((volume * arrays[f"{modalities}/cotangent"]).sum(), vectors)
        assert_equal(gradient.transpose(0, 1), arrays[f"{modalities}/grad_features"])
