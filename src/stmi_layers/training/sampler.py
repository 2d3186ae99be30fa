"""P x K sampler: batches of P identities with K images each, from a seed and the epoch."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Sampler

from stmi_layers.training.seeds import mix_seed


class IdentitySampler(Sampler[list[int]]):
    """Batches of P identities with K images each.

    An epoch has enough batches to draw as many images as the dataset has, and every identity at least once.
    A batch has the P identities drawn least often so far in the epoch, ties at random, so that the counts of two
    identities differ by one at most. An identity gives the K of its images drawn least often; if it has n < K images,
    each is drawn K // n times, and the images drawn least often once more.

    Args:
        labels: label of every sample of the dataset.
        identities_per_batch: P, from 1 to the number of identities.
        images_per_identity: K, at least 1.
        seed: seed of the draws; together with the epoch it fixes the batches.

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
    """Draw the `number` indices drawn least often, ties at random; if there are fewer, draw all of them repeatedly.

    `counts` are raised in place.
    """
    order = torch.randperm(len(counts), generator=generator)
    least = order[counts[order].argsort(stable=True)]
    rounds, rest = divmod(number, len(counts))
    drawn = torch.cat([least.repeat(rounds), least[:rest]])
    counts += torch.bincount(drawn, minlength=len(counts))
    return drawn
