"""Settings of NEXT: what is its own, beside data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision
from examples.towers.clip_text import Overflow

Experts = Literal["both", "semantic", "structural", "none"]


@dataclass(frozen=True)
class Settings:
    """NEXT: what follows the tower."""

    experts: Experts = "both"
    """Experts behind the tower: those of what captions say (TMSE), those of what modalities share (CSSE), or both."""
    num_experts: int = 4
    """Experts of each kind."""
    mlp_ratio: float = 4.0
    """Hidden width of an expert, in widths of a token."""
    dropout: float = 0.1
    """Share of an expert's result that is dropped in training."""
    num_heads: int = 4
    """Attention heads of the readouts (MGFA), and of the small text encoder."""
    norm: bool = False
    """Normalise what a readout compares."""
    sentence_share: float = 0.5
    """Probability that an expert draws a sentence of a caption in training; one at least, and all in evaluation."""
    text_encoder: Literal["words", "clip"] = "words"
    """Reader of the sentences: a small transformer learned here, or the frozen text tower of `architecture`."""
    caption_overflow: Overflow = "truncate"
    """Sentences beyond the 77 tokens of CLIP: cut, or read in pieces whose features are averaged."""
    supervision: Supervision = "joined"
    """Class tokens as one feature of all modalities, or as a feature per modality."""
