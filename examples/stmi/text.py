"""The text prior: a small transformer over the captions' words, learned with the rest.

It stands where a pretrained text tower can: a `Vocabulary` turns captions into token ids, an encoder turns the ids
into one vector per caption. In the paper the tower is CLIP's.
"""

import re
from collections import Counter
from collections.abc import Iterable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

PADDING, UNKNOWN, NO_CAPTION = range(3)
RESERVED = ("<padding>", "<unknown>", "<no caption>")


class Vocabulary:
    """The words of the training captions, in a fixed order.

    Args:
        words: all words but the reserved ones.
        length: token ids per caption; longer captions are cut.
    """

    def __init__(self, words: Iterable[str], *, length: int = 32) -> None:
        self.words = tuple(words)
        self.length = length
        self._index = {word: index for index, word in enumerate((*RESERVED, *self.words))}

    @classmethod
    def from_captions(cls, captions: Iterable[str], *, length: int = 32) -> "Vocabulary":
        """Collect the words, the most frequent first, ties in alphabetical order."""
        counts = Counter(word for caption in captions for word in split_words(caption))
        return cls(sorted(counts, key=lambda word: (-counts[word], word)), length=length)

    def __len__(self) -> int:
        return len(self._index)

    def encode(self, captions: Iterable[str]) -> Int[Tensor, "batch words"]:
        """Token ids, padded to `length`. An empty caption becomes the one token that says so."""
        rows = []
        for caption in captions:
            ids = [self._index.get(word, UNKNOWN) for word in split_words(caption)][: self.length] or [NO_CAPTION]
            rows.append(ids + [PADDING] * (self.length - len(ids)))
        return torch.tensor(rows)

    def count_cut(self, captions: Iterable[str]) -> int:
        """How many captions have more words than `length`, for a warning that names the count."""
        return sum(len(split_words(caption)) > self.length for caption in captions)


def split_words(caption: str) -> list[str]:
    return re.findall(r"[^\W_]+", caption.lower())


class CaptionEncoder(nn.Module):
    """One vector per caption: word and position embeddings, a transformer layer, the mean over the words.

    Args:
        vocabulary_size: number of token ids.
        length: token ids per caption.
        dim: width of the vector.
        num_heads: heads of the transformer layer.
    """

    def __init__(self, vocabulary_size: int, length: int, dim: int, *, num_heads: int = 4) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary_size, dim, padding_idx=PADDING)
        self.positions = nn.Parameter(torch.empty(length, dim))
        self.layer = nn.TransformerEncoderLayer(
            dim, num_heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.positions, std=0.02)

    def forward(self, tokens: Int[Tensor, "batch words"]) -> Float[Tensor, "batch dim"]:
        word = (tokens != PADDING)[..., None]
        hidden = self.layer(self.words(tokens) + self.positions, src_key_padding_mask=~word[..., 0])
        mean = (hidden * word).sum(dim=1) / word.sum(dim=1)
        return self.norm(mean)
