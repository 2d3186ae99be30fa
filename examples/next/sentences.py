"""Splitting of captions into sentences for NEXT, so that every expert draws its own sentences."""

import re
from collections.abc import Sequence

from torch import Tensor

from examples.towers.text import NO_CAPTION


def split_sentences(caption: str) -> list[str]:
    """Split a caption after every full stop, exclamation mark and question mark before a space or the end.

    Examples:
        >>> split_sentences("A white van of 2.5 tons. Its roof is red!  ")
        ['A white van of 2.5 tons.', 'Its roof is red!']
        >>> split_sentences("")
        []
    """
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", caption.strip()) if sentence]


def lay_out(captions: Sequence[tuple[str, ...]], modalities: int) -> tuple[list[str], tuple[int, int, int]]:
    """Lay out the sentences of all captions as one list of equally long pieces, padded by "".

    Args:
        captions: captions of every sample: none, one for all its modalities, or one per modality.
        modalities: number of modalities.

    Returns:
        The sentences, and their shape (samples, captions, sentences). There is one caption per sample if no sample has
        more; otherwise one per modality, and a caption for all modalities is repeated.

    Examples:
        >>> lay_out([("A car. Red.",), ()], 2)
        (['A car.', 'Red.', '', ''], (2, 1, 2))
        >>> lay_out([("A car.",), ("Red.", "")], 2)
        (['A car.', 'A car.', 'Red.', ''], (2, 2, 1))
    """
    columns = modalities if any(len(of_one) > 1 for of_one in captions) else 1
    split = [
        [split_sentences(caption) for caption in (of_one if len(of_one) == columns else (of_one or ("",)) * columns)]
        for of_one in captions
    ]
    length = max((len(sentences) for of_one in split for sentences in of_one), default=0) or 1
    padded = [s for of_one in split for sentences in of_one for s in sentences + [""] * (length - len(sentences))]
    return padded, (len(captions), columns, length)


def known_sentences(texts: Tensor) -> Tensor:
    """Tell which sentences exist, from their token ids, or from features of a frozen tower (0 if missing)."""
    return texts.any(dim=-1) if texts.is_floating_point() else texts[..., 0] != NO_CAPTION
