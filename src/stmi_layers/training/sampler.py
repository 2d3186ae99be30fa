"""Which samples form a batch, and which of them query which: everything random comes from a seed and the epoch."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Sampler

from stmi_layers.training.splits import Item


def mix_seed(*numbers: int) -> int:
    """One seed from several numbers, such that neighbours have nothing in common."""
    if min(numbers) < 0:
        raise ValueError(f"seed and epoch must not be negative; received {numbers}")
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def derange(count: int, seed: int) -> list[int]:
    """A random cycle through all indices: nobody keeps his own.

    Raises:
        ValueError: when there are fewer than two.
    """
    if count < 2:
        raise ValueError(f"to be shuffled there must be at least two items; received {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(mix_seed(seed))).tolist()
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [following[index] for index in range(count)]


class IdentitySampler(Sampler[list[int]]):
    """Batches of P identities with K images each.

    An epoch is as many batches as it takes to draw as many images as there are, and every identity at least once.
    A batch has the P identities drawn least often so far in the epoch, ties at random, so that the counts of two
    identities differ by one at most. An identity gives the K of its images drawn least often; if it has n < K, each
    is drawn K // n times and those drawn least often once more.

    Args:
        labels: one per sample of the dataset.
        identities_per_batch: P.
        images_per_identity: K.
        seed: with the epoch it fixes the batches.

    Raises:
        ValueError: when P is not in 1 ... number of identities, or K < 1.
    """

    def __init__(
        self, labels: Sequence[int], identities_per_batch: int, images_per_identity: int, *, seed: int = 0
    ) -> None:
        indices: dict[int, list[int]] = {label: [] for label in sorted(set(labels))}
        for index, label in enumerate(labels):
            indices[label].append(index)
        self._indices = [torch.tensor(of_one) for of_one in indices.values()]
        if not 1 <= identities_per_batch <= len(self._indices):
            raise ValueError(
                f"identities_per_batch must lie in 1 ... {len(self._indices)}, the number of identities; "
                f"received {identities_per_batch}"
            )
        if images_per_identity < 1:
            raise ValueError(f"images_per_identity must be at least 1; received {images_per_identity}")
        self.identities_per_batch, self.images_per_identity = identities_per_batch, images_per_identity
        self.seed, self._epoch, self._num_images = seed, 0, len(labels)

    def __len__(self) -> int:
        per_batch = self.identities_per_batch * self.images_per_identity
        return max(-(-self._num_images // per_batch), -(-len(self._indices) // self.identities_per_batch))

    def set_epoch(self, epoch: int) -> None:
        """Draw other batches from the next iteration on; the same epoch gives the same batches."""
        self._epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        generator = torch.Generator().manual_seed(mix_seed(self.seed, self._epoch))
        identity_counts = torch.zeros(len(self._indices), dtype=torch.int64)
        image_counts = [torch.zeros(len(indices), dtype=torch.int64) for indices in self._indices]
        for _ in range(len(self)):
            batch: list[int] = []
            for identity in _draw(identity_counts, self.identities_per_batch, generator).tolist():
                chosen = _draw(image_counts[identity], self.images_per_identity, generator)
                batch += self._indices[identity][chosen].tolist()
            yield batch


def _draw(counts: Tensor, number: int, generator: torch.Generator) -> Tensor:
    """The `number` indices drawn least often, ties at random, all of them at once while there are too few.

    `counts` are raised in place.
    """
    order = torch.randperm(len(counts), generator=generator)
    least = order[counts[order].argsort(stable=True)]
    rounds, rest = divmod(number, len(counts))
    drawn = torch.cat([least.repeat(rounds), least[:rest]])
    counts += torch.bincount(drawn, minlength=len(counts))
    return drawn


def query_gallery(
    items: Sequence[Item], query_cameras: Sequence[int] = ()
) -> tuple[Int[Tensor, " queries"], Int[Tensor, " gallery"]]:
    """Indices of the queries and of the gallery.

    Args:
        items: those of the test split. Where their roles tell queries from the gallery, that is the answer.
        query_cameras: where they do not, the cameras that query all others; without any, every item is both.

    Raises:
        ValueError: when a camera does not exist, none is left for the gallery, or the roles leave no choice.
    """
    roles = [item.role for item in items]
    if any(role != "both" for role in roles):
        if query_cameras:
            raise ValueError(
                f"query_cameras must be empty where the set has a query split; received {list(query_cameras)} "
                "(--query-cameras)"
            )
        query, gallery = (torch.tensor([role != other for role in roles]) for other in ("gallery", "query"))
        return query.nonzero().flatten(), gallery.nonzero().flatten()
    cameras = torch.tensor([item.camera for item in items])
    if not query_cameras:
        return torch.arange(len(items)), torch.arange(len(items))
    there = sorted(set(cameras.tolist()))
    unknown = sorted(set(query_cameras).difference(there))
    if unknown:
        raise ValueError(
            f"query_cameras must be cameras of the items, {there}; received {unknown} among them (--query-cameras)"
        )
    is_query = torch.isin(cameras, torch.tensor(list(query_cameras)))
    if is_query.all():
        raise ValueError(
            f"query_cameras must leave a camera for the gallery; received all of them, {there} (--query-cameras)"
        )
    return is_query.nonzero().flatten(), (~is_query).nonzero().flatten()
