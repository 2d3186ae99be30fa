"""Settings of NEXT beyond data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision
from examples.towers.clip_text import Overflow

Experts = Literal["both", "semantic", "structural", "none"]


@dataclass(frozen=True)
class Settings:
    """NEXT: modules after the tower."""

    experts: Experts = "both"
    """Kinds of experts after the tower: "semantic" for the content of captions (TMSE), "structural" for what modalities
    share (CSSE), both, or none."""
    num_experts: int = 4
    """Number of experts of each kind."""
    mlp_ratio: float = 4.0
    """Hidden width of an expert, as a multiple of the token width."""
    dropout: float = 0.1
    """Dropout of experts: share of an expert's result that is dropped in training."""
    num_heads: int = 4
    """Number of attention heads of the readouts (MGFA) and of the small text encoder."""
    norm: bool = False
    """Normalise queries and keys of the readouts."""
    sentence_share: float = 0.5
    """Probability that an expert draws a sentence of a caption in training, at least one; evaluation reads all."""
    text_encoder: Literal["words", "clip"] = "words"
    """Encoder of sentences: a small transformer trained from scratch ("words"), or the frozen text tower of
    `architecture` ("clip")."""
    caption_overflow: Overflow = "truncate"
    """Policy for sentences longer than the 77 tokens of CLIP: cut, or read in pieces whose features are averaged."""
    supervision: Supervision = "joined"
    """Supervision of class tokens: one joined feature of all modalities, or a single feature per modality."""
