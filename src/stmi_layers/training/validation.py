"""Validation identities: a share of the training identities, held out to choose settings without the test split."""

from collections.abc import Sequence

import torch

from stmi_layers._checks import check_probability
from stmi_layers.training.messages import shorten
from stmi_layers.training.record import Item
from stmi_layers.training.seeds import mix_seed
from stmi_layers.training.settings import Data

# Retrieval among fewer identities has no wrong answer.
FEWEST = 2


def hold_out(items: Sequence[Item], share: float, seed: int = 0) -> tuple[list[Item], list[Item]]:
    r"""Split items by identity into those to train on and those of the identities held out.

    Of $n$ identities the first $\lfloor n \cdot \text{share} + 1/2 \rfloor$ of a random order are held out, with all
    their items. The order depends on the seed and the set of identities alone, so that a larger share holds out the
    same identities and more.

    Args:
        items: items of a training split, each with an identity.
        share: share of the identities, above 0 and below 1.
        seed: seed of the draw, apart from the seed of a run, because runs that are compared need the same identities.

    Returns:
        The items to train on and the held-out ones, both in the order of `items`.

    Raises:
        ValueError: when the share leaves fewer than two identities on a side, or an item has no identity.

    Examples:
        >>> items = [Item(f"{number}", number // 2, (), ()) for number in range(20)]
        >>> kept, held_out = hold_out(items, 0.3)
        >>> len(kept), len(held_out), {item.identity for item in kept} & {item.identity for item in held_out}
        (14, 6, set())
    """
    check_probability("share", share)
    if nameless := [item.name for item in items if item.identity is None]:
        raise ValueError(f"items must have identities; received {len(nameless)} without: {shorten(nameless)}")
    identities = sorted({item.identity for item in items}, key=lambda identity: (isinstance(identity, str), identity))
    count = int(len(identities) * share + 0.5)
    if min(count, len(identities) - count) < FEWEST:
        raise ValueError(
            f"share must hold out {FEWEST} identities and leave {FEWEST} to train on; received {share}, which is "
            f"{count} of {len(identities)} identities"
        )
    order = torch.randperm(len(identities), generator=torch.Generator().manual_seed(mix_seed(seed))).tolist()
    drawn = {identities[index] for index in order[:count]}
    return [item for item in items if item.identity not in drawn], [item for item in items if item.identity in drawn]


def scored_split(data: Data) -> str:
    """Name the split that a run is scored on: "validation" where training identities are held out, otherwise "test"."""
    return "validation" if data.validation else "test"


def training_items(items: Sequence[Item], data: Data, split: str) -> list[Item]:
    """Take from the items of the training split those of "train" or "validation", without junk.

    Raises:
        ValueError: when an item has no identity, or the share of validation identities leaves too few on a side.
    """
    useful = [item for item in items if item.identity not in data.junk]
    if nameless := [item.name for item in useful if item.identity is None]:
        raise ValueError(f"{data.root}: {len(nameless)} items to train on have no identity: {shorten(nameless)}")
    if not data.validation:
        return useful
    kept, held_out = hold_out(useful, data.validation, data.validation_seed)
    return held_out if split == "validation" else kept
