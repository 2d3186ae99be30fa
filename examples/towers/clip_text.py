"""Text prior from CLIP's frozen text tower, which reads each distinct caption once, and a trainable projection.

The paper supervises T, the feature of the caption, like G and U. After a frozen tower this loss would train only its
own classifier. So by default a linear layer follows the tower: the loss on T, and the losses on U through STR, shape
the prior.
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
READ_AT_ONCE = 64  # pieces of text per forward pass


class ClipVocabulary:
    """Vocabulary of CLIP's byte-pair tokens, from the table in open_clip.

    Args:
        architecture: open_clip's name of the model, which determines the length of its text tower, 77 tokens in CLIP.
        overflow: policy for longer captions: "truncate" drops the rest, as CLIP does; "average" cuts a caption into
            pieces and takes the mean of the features of the pieces.

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
        """Return token ids: start token, caption and end token, padded to `length`; then its further pieces, if any.

        An empty caption is all padding.
        """
        pieces = [self._pieces(caption) for caption in captions]
        tokens = torch.zeros(len(pieces), max([1, *map(len, pieces)]), self.length, dtype=torch.int64)
        for row, of_one in enumerate(pieces):
            for column, ids in enumerate(of_one):
                tokens[row, column, : len(ids)] = torch.tensor(ids)
        return tokens

    def describe_overflow(self, captions: Sequence[str]) -> str | None:
        """Describe captions that are longer than the tower reads, and their treatment; None if there are none."""
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
    """Encoder of captions: the feature of a frozen text tower, then a trainable linear layer.

    A missing caption has a learned vector instead.

    Args:
        tower: an open_clip model, of which `encode_text` is used.
        vocabulary: vocabulary that turns captions into token ids.
        width: width of the features of the tower.
        dim: width of the returned vector.
        project: learn the linear layer, which starts as the identity if `width` and `dim` are equal. Without it the
            vector is the feature itself, and a loss on the vector trains only its own classifier, as in the paper.

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
        """Set the mode of all parts except the frozen tower."""
        super().train(mode)
        self.tower.eval()
        return self

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Float[Tensor, "captions width"]:
        """Return features of the frozen tower in float32, 0 for a missing caption; distinct captions are read once.

        A caption of several pieces has the mean of their features. Captions that are too long cause a warning.
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
        """Return the vectors of captions, given the features of `encode`."""
        return torch.where(has_text[:, None], self.projection(features), self.no_caption)

    def _read(self, pieces: Int[Tensor, "pieces length"]) -> Float[Tensor, "pieces width"]:
        device = self.no_caption.device
        with torch.autocast(device.type, enabled=False):
            read = [self.tower.encode_text(some.to(device)) for some in pieces.split(READ_AT_ONCE)]  # pyright: ignore[reportCallIssue]
        return torch.cat([some.float().cpu() for some in read]) if read else torch.zeros(0, self.width)


def build_clip_text(
    architecture: str, dim: int | None, *, overflow: Overflow = "truncate", project: bool = True
) -> ClipCaptionEncoder:
    """Build the text tower of an open_clip model with random weights, and the trainable layers after it.

    Args:
        architecture: open_clip's name of the model.
        dim: width of the vectors; None takes the width of the tower's features.
        overflow: see `ClipVocabulary`.
        project: see `ClipCaptionEncoder`.
    """
    vocabulary = ClipVocabulary(architecture, overflow=overflow)
    clip = build_clip(architecture)
    return ClipCaptionEncoder(clip.text, vocabulary, clip.width, dim or clip.width, project=project)
