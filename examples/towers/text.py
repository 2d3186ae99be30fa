"""Text encoder trained with the model: a small transformer over the words of the captions.

A text encoder has two steps. `encode` turns captions into numbers once, before training; `forward` turns the numbers of
a batch into one vector per caption. `clip_text.py` has another text encoder, CLIP's frozen tower, which the paper uses.
"""

import re
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

PADDING, UNKNOWN, NO_CAPTION = range(3)
RESERVED = ("<padding>", "<unknown>", "<no caption>")


class TextEncoder(Protocol):
    """Protocol of a text encoder, which is also an `nn.Module`."""

    def encode(self, captions: Sequence[str], /) -> Shaped[Tensor, "captions ..."]:
        """Return the numbers of each caption, on the CPU; "" is a missing caption."""
        ...

    def __call__(self, texts: Tensor, has_text: Tensor, /) -> Float[Tensor, "batch dim"]:
        """Return one vector per row of `texts`, encoded by `encode`; rows without caption are False in `has_text`."""
        ...


class Vocabulary:
    """Words of the training captions in a fixed order, and their token ids.

    Args:
        words: all words except the reserved words.
        length: token ids per caption; longer captions are cut.
    """

    def __init__(self, words: Iterable[str], *, length: int = 32) -> None:
        self.words = tuple(words)
        self.length = length
        self._index = {word: index for index, word in enumerate((*RESERVED, *self.words))}

    @classmethod
    def from_captions(cls, captions: Iterable[str], *, length: int = 32) -> "Vocabulary":
        """Build a vocabulary from captions, the most frequent word first, ties in alphabetical order."""
        counts = Counter(word for caption in captions for word in split_words(caption))
        return cls(sorted(counts, key=lambda word: (-counts[word], word)), length=length)

    def __len__(self) -> int:
        return len(self._index)

    def encode(self, captions: Iterable[str]) -> Int[Tensor, "batch words"]:
        """Return token ids, padded to `length`. An empty caption becomes the token `<no caption>`."""
        rows = []
        for caption in captions:
            ids = [self._index.get(word, UNKNOWN) for word in split_words(caption)][: self.length] or [NO_CAPTION]
            rows.append(ids + [PADDING] * (self.length - len(ids)))
        return torch.tensor(rows)

    def describe_overflow(self, captions: Sequence[str]) -> str | None:
        """Describe captions with more words than `length`; None if there are none."""
        cut = sum(len(split_words(caption)) > self.length for caption in captions)
        return f"{cut} of {len(captions)} captions have more than {self.length} words and are cut" if cut else None


def split_words(caption: str) -> list[str]:
    return re.findall(r"[^\W_]+", caption.lower())


class CaptionEncoder(nn.Module):
    """Encoder of captions: word and position embeddings, a transformer layer, and the mean over the words.

    Args:
        words: words of the training captions, most frequent first.
        dim: width of the returned vector.
        length: token ids per caption; longer captions are cut.
        num_heads: number of heads of the transformer layer.
    """

    def __init__(self, words: Iterable[str], dim: int, *, length: int = 32, num_heads: int = 4) -> None:
        super().__init__()
        self.vocabulary = Vocabulary(words, length=length)
        self.words = nn.Embedding(len(self.vocabulary), dim, padding_idx=PADDING)
        self.positions = nn.Parameter(torch.empty(length, dim))
        self.layer = nn.TransformerEncoderLayer(
            dim, num_heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.positions, std=0.02)

    def encode(self, captions: Sequence[str]) -> Int[Tensor, "captions words"]:
        """Return token ids, and warn about captions that are cut."""
        if overflow := self.vocabulary.describe_overflow(captions):
            warnings.warn(overflow, stacklevel=2)
        return self.vocabulary.encode(captions)

    def forward(
        self, tokens: Int[Tensor, "batch words"], has_text: Bool[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch dim"]:
        """Return the vectors of captions; a missing caption has a reserved token, so `has_text` is not read."""
        word = (tokens != PADDING)[..., None]
        hidden = self.layer(self.words(tokens) + self.positions, src_key_padding_mask=~word[..., 0])
        mean = (hidden * word).sum(dim=1) / word.sum(dim=1)
        return self.norm(mean)
