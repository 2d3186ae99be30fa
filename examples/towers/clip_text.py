"""CLIP's text tower as the text prior: frozen, each distinct caption read once, with a projection that learns.

The paper supervises T, the feature of the caption, as it does G and U. Behind a frozen tower that loss trains nothing
but its own classifier. Here a linear map follows the tower by default, so that the loss on T, and those on U through
STR, shape the prior.
"""

import warnings
from collections.abc import Iterable, Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from examples.optional import import_library
from examples.towers.architectures import build_clip

Overflow = Literal["truncate", "average"]
READ_AT_ONCE = 64  # pieces of text


class ClipVocabulary:
    """CLIP's byte-pair tokens, from the table that open_clip brings along.

    Args:
        architecture: open_clip's name of the model; says how many tokens its text tower reads, 77 in CLIP.
        overflow: what to do about captions with more tokens: "truncate" drops the rest, as CLIP does; "average" cuts
            them into pieces and takes the mean of the pieces' features.

    Raises:
        ImportError: when open_clip is not installed.
        ValueError: when the text tower needs other tokens than CLIP's, which would have to be downloaded.
    """

    def __init__(self, architecture: str, *, overflow: Overflow = "truncate") -> None:
        open_clip = import_library("open_clip", "clip")
        config = (architecture in open_clip.list_models() and open_clip.get_model_config(architecture)) or {}
        if "text_cfg" not in config or config["text_cfg"].get("hf_tokenizer_name"):
            raise ValueError(
                f"architecture must be a model of open_clip with CLIP's own tokens, such as 'ViT-B-16-quickgelu', for "
                f"text_encoder='clip'; received {architecture!r}"
            )
        self._tokenizer = open_clip.SimpleTokenizer()
        self.length, self.overflow = config["text_cfg"].get("context_length", 77), overflow

    def encode(self, captions: Iterable[str]) -> Int[Tensor, "captions pieces length"]:
        """Token ids: a start token, the caption and an end token, padded to `length`; then its further pieces, if any.

        An empty caption is all padding.
        """
        pieces = [self._pieces(caption) for caption in captions]
        tokens = torch.zeros(len(pieces), max([1, *map(len, pieces)]), self.length, dtype=torch.int64)
        for row, of_one in enumerate(pieces):
            for column, ids in enumerate(of_one):
                tokens[row, column, : len(ids)] = torch.tensor(ids)
        return tokens

    def describe_overflow(self, captions: Sequence[str]) -> str | None:
        """Describe captions that are longer than the tower reads, and their treatment; None when there are none."""
        long = sum(len(self._tokenizer.encode(caption)) > self.length - 2 for caption in captions)
        if not long:
            return None
        what = "cut" if self.overflow == "truncate" else "read in pieces, whose features are averaged"
        return f"{long} of {len(captions)} captions have more than CLIP's {self.length} tokens and are {what}"

    def _pieces(self, caption: str) -> list[list[int]]:
        if not caption.strip():
            return []
        ids, room = self._tokenizer.encode(caption), self.length - 2
        starts = range(0, max(1, len(ids)), room)
        pieces = [[self._tokenizer.sot_token_id, *ids[i : i + room], self._tokenizer.eot_token_id] for i in starts]
        return pieces[:1] if self.overflow == "truncate" else pieces


class ClipCaptionEncoder(nn.Module):
    """One vector per caption: the feature of a frozen text tower, then a linear map that learns.

    A missing caption has a learned vector instead.

    Args:
        tower: an open_clip model; of it `encode_text` is used.
        vocabulary: turns captions into what the tower reads.
        width: of the features of the tower.
        dim: width of the vector.
        project: learn the linear map; it starts as the identity where `width` and `dim` are equal. Without it the
            vector is the feature itself, and a loss on it trains nothing but its own classifier, as in the paper.

    Raises:
        ValueError: when there is no projection and `width` and `dim` differ.
    """

    def __init__(
        self, tower: nn.Module, vocabulary: ClipVocabulary, width: int, dim: int, *, project: bool = True
    ) -> None:
        super().__init__()
        if not project and width != dim:
            raise ValueError(f"text_projection=False needs a text tower of width {dim}, as the tokens; it has {width}")
        self.tower = tower.requires_grad_(False).eval()
        self.vocabulary, self.width = vocabulary, width
        linear = nn.Linear(width, dim)
        if width == dim:
            nn.init.eye_(linear.weight)
            nn.init.zeros_(linear.bias)
        self.projection = linear if project else nn.Identity()
        self.no_caption = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.no_caption, std=0.02)

    def train(self, mode: bool = True) -> "ClipCaptionEncoder":
        """Set the mode of all but the tower, which is frozen."""
        super().train(mode)
        self.tower.eval()
        return self

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Float[Tensor, "captions width"]:
        """Features of the frozen tower, in float32, 0 for a missing caption; every distinct caption is read once.

        A caption of several pieces has their mean. Warns of captions that are longer than the tower reads.
        """
        if overflow := self.vocabulary.describe_overflow(captions):
            warnings.warn(overflow, stacklevel=2)
        distinct = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
        pieces = self.vocabulary.encode(distinct)  # (distinct pieces length)
        there = pieces.any(dim=-1)  # (distinct pieces)
        features = torch.zeros(*there.shape, self.width)
        features[there] = self._read(pieces[there])
        mean = features.sum(dim=1) / there.sum(dim=1, keepdim=True).clamp(min=1)
        return mean[[distinct[caption] for caption in captions]]

    def forward(
        self, features: Float[Tensor, "batch width"], has_text: Bool[Tensor, " batch"]
    ) -> Float[Tensor, "batch dim"]:
        """Vectors of captions, from what `encode` made of them."""
        return torch.where(has_text[:, None], self.projection(features), self.no_caption)

    def _read(self, pieces: Int[Tensor, "pieces length"]) -> Float[Tensor, "pieces width"]:
        device = self.no_caption.device
        with torch.autocast(device.type, enabled=False):
            read = [self.tower.encode_text(some.to(device)) for some in pieces.split(READ_AT_ONCE)]  # pyright: ignore[reportCallIssue]
        return torch.cat([some.float().cpu() for some in read]) if read else torch.zeros(0, self.width)


def build_clip_text(
    architecture: str, dim: int | None, *, overflow: Overflow = "truncate", project: bool = True
) -> ClipCaptionEncoder:
    """The text tower of an open_clip model with random weights, and what is learned behind it.

    Args:
        architecture: open_clip's name of the model.
        dim: width of the vectors; None for that of the tower's features.
        overflow: see `ClipVocabulary`.
        project: see `ClipCaptionEncoder`.
    """
    vocabulary = ClipVocabulary(architecture, overflow=overflow)
    clip = build_clip(architecture)
    return ClipCaptionEncoder(clip.text, vocabulary, clip.width, dim or clip.width, project=project)
