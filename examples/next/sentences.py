"""Sentences of captions as NEXT reads them: apart, so that every expert draws some of its own."""

import re
from collections.abc import Sequence

from torch import Tensor

from examples.towers.text import NO_CAPTION


def split_sentences(caption: str) -> list[str]:
    """Cut a caption behind every full stop, exclamation mark and question mark that a space or the end follows.

    Examples:
        >>> split_sentences("A white van of 2.5 tons. Its roof is red!  ")
        ['A white van of 2.5 tons.', 'Its roof is red!']
        >>> split_sentences("")
        []
    """
    return [sentence for sentence in re.split(r"(?<=[.!?])\s+", caption.strip()) if sentence]


def lay_out(captions: Sequence[tuple[str, ...]], modalities: int) -> tuple[list[str], tuple[int, int, int]]:
    """Lay the sentences of all captions out as one list of equally long pieces, filled up by "".

    Args:
        captions: of every sample none, one of all its modalities, or one per modality.
        modalities: number of modalities.

    Returns:
        The sentences, and their shape (samples, captions, sentences). There is one caption per sample where no sample
        has more, else one per modality; one of all modalities is repeated then.

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
    """True for the sentences there are: by their token ids, or by features of a frozen tower, 0 for a missing one."""
    return texts.any(dim=-1) if texts.is_floating_point() else texts[..., 0] != NO_CAPTION
