"""P x K batches: laws, reproducibility, errors; seeds and derangements."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from stmi_layers.training.sampler import IdentitySampler
from stmi_layers.training.seeds import derange, mix_seed


@given(st.data())
def test_sampler_laws(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    labels = data.draw(st.permutations([7 * label for label, size in enumerate(sizes) for _ in range(size)]))
    identities, images = data.draw(st.integers(1, len(sizes))), data.draw(st.integers(1, 6))
    sampler = IdentitySampler(labels, identities, images, seed=data.draw(st.integers(0, 9)))
    sampler.set_epoch(data.draw(st.integers(0, 9)))
    batches = list(sampler)
    assert list(sampler) == batches
    assert len(batches) == len(sampler)
    assert len(labels) <= len(batches) * identities * images
    for batch in batches:
        of_identity = Counter(labels[index] for index in batch)
        assert list(of_identity.values()) == [images] * identities
        drawn = Counter(batch)
        assert all(count <= -(-images // labels.count(labels[index])) for index, count in drawn.items())
    identity_counts = Counter(labels[index] for index in itertools.chain(*batches))
    image_counts = Counter(itertools.chain(*batches))
    assert min(identity_counts[label] for label in labels) > 0
    assert max(identity_counts.values()) - min(identity_counts.values()) <= images
    for label in labels:
        of_one = [image_counts[index] for index, other in enumerate(labels) if other == label]
        assert max(of_one) - min(of_one) <= 1


def test_sampler_draws_from_its_own_generator() -> None:
    labels = [index // 3 for index in range(60)]
    sampler = IdentitySampler(labels, 4, 3, seed=1)
    first = list(sampler)
    before = torch.get_rng_state()
    torch.manual_seed(7)
    assert list(IdentitySampler(labels, 4, 3, seed=1)) == first
    torch.set_rng_state(before)
    _ = list(sampler)
    assert torch.equal(torch.get_rng_state(), before)
    sampler.set_epoch(1)
    assert list(sampler) != first
    assert list(IdentitySampler(labels, 4, 3, seed=2)) != first
    assert sorted(itertools.chain(*first)) == list(range(60))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 0, 1), 3, 2), "identities_per_batch must lie in 1 ... 2, the number of identities; received 3"),
        (((0, 0, 1), 0, 2), "identities_per_batch must lie in .*; received 0"),
        (((0, 0, 1), 2, 0), "images_per_identity must be at least 1; received 0"),
    ],
)
def test_sampler_errors(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        IdentitySampler(*arguments)


@given(st.integers(2, 40), st.integers(0, 99))
def test_a_derangement_moves_everybody_in_one_cycle(count: int, seed: int) -> None:
    order = derange(count, seed)
    place, steps = order[0], 1
    while place:
        place, steps = order[place], steps + 1
    assert steps == count
    assert derange(count, seed) == order


def test_seeds_of_neighbours_differ() -> None:
    assert len({mix_seed(*numbers) for numbers in itertools.product(range(10), repeat=3)}) == 1000
    with pytest.raises(ValueError, match="a derangement must be of at least two items; received 1"):
        derange(1, 0)
