"""Frozen text tower of CLIP with learned words in the captions, run for every batch."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from examples.towers.architectures import build_clip
from examples.towers.clip_text import ClipCaptionEncoder, ClipVocabulary
from stmi_layers import CaptionPrompts, prompted_text_feature


class PromptedCaptionEncoder(ClipCaptionEncoder):
    """Encoder of captions with learned words: the mean over the end of a caption and its learned words.

    A caption is read as "an image of a x x ..." with an "x" for each learned word. A missing caption has a learned
    vector.

    Args:
        tower: an open_clip model with the text tower of CLIP.
        vocabulary: vocabulary that turns captions into token ids.
        width: width of the features of the tower.
        dim: width of the returned vector.
        num_prompts: number of learned words.

    Raises:
        ValueError: when the text tower is not built like that of CLIP.
    """

    def __init__(self, tower: nn.Module, vocabulary: ClipVocabulary, width: int, dim: int, num_prompts: int) -> None:
        super().__init__(tower, vocabulary, width, dim)
        if not isinstance(getattr(tower, "text_projection", None), nn.Parameter):
            raise ValueError(f"num_prompts needs the text tower of CLIP; received a {type(tower).__name__}")
        self.prompts = CaptionPrompts(num_prompts, tower.get_submodule("token_embedding").embedding_dim)  # pyright: ignore

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> Int[Tensor, "captions length"]:
        """Return token ids of the captions with their stand-ins, cut to the length of the tower; 0 if missing."""
        stand_ins = "an image of a " + "x " * self.prompts.num_prompts
        longer = [stand_ins + caption if caption.strip() else "" for caption in captions]
        if overflow := self.vocabulary.describe_overflow(longer):
            warnings.warn(overflow, stacklevel=2)
        return self.vocabulary.encode(longer)[:, 0]

    def forward(self, ids: Int[Tensor, "batch length"], has_text: Bool[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """Return the vectors of captions, given the token ids of `encode`."""
        tower: Any = self.tower
        embeddings = self.prompts(tower.token_embedding(ids))  # (b l w)
        hidden = tower.transformer(embeddings + tower.positional_embedding, attn_mask=tower.attn_mask)
        tokens = tower.ln_final(hidden) @ tower.text_projection  # (b l width)
        return super().forward(prompted_text_feature(tokens, ids, self.prompts.num_prompts), has_text)


def build_prompted_text(architecture: str, dim: int, num_prompts: int) -> PromptedCaptionEncoder:
    """Build the text tower of an open_clip model with random weights, learned words and the layers after it."""
    clip = build_clip(architecture)
    return PromptedCaptionEncoder(clip.text, ClipVocabulary(architecture), clip.width, dim, num_prompts)
