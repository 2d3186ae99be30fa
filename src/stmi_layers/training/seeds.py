"""Seeds and derangements: everything random comes from a seed, the epoch and the index of a sample."""

import numpy as np
import torch


def mix_seed(*numbers: int) -> int:
    """Mix several numbers into one seed, so that adjacent numbers give unrelated seeds."""
    if min(numbers) < 0:
        raise ValueError(f"seed and epoch must not be negative; received {numbers}")
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


def derange(count: int, seed: int) -> list[int]:
    """Draw a cycle through all indices at random: no index keeps its own place.

    Raises:
        ValueError: when there are fewer than two indices.
    """
    if count < 2:
        raise ValueError(f"a derangement must be of at least two items; received {count}")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(mix_seed(seed))).tolist()
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [following[index] for index in range(count)]
