"""Settings of STMI: what is its own, beside data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.clip_text import Overflow

Fusion = Literal["hypergraph", "self-attention", "mlp", "none", "concatenation"]


@dataclass(frozen=True)
class Settings:
    """STMI: what follows the tower."""

    reallocation: bool = True
    """STR and everything behind it; without it the descriptor is G."""
    fusion: Fusion = "hypergraph"
    """Interaction of the semantic tokens: CHI, or what Table 4 puts in its place."""
    num_tokens: int = 4
    """K, semantic tokens per modality."""
    num_heads: int = 4
    """Attention heads of STR, the readout and the text encoder."""
    similarity: Literal["cosine", "euclidean"] = "cosine"
    """Comparison of semantic tokens that builds the hypergraph."""
    threshold: float = 0.5
    """Least cosine, or greatest Euclidean distance, at which two semantic tokens share a hyperedge."""
    text_encoder: Literal["words", "clip"] = "words"
    """Reader of the captions: a small transformer learned here, or the frozen text tower of `architecture`."""
    caption_overflow: Overflow = "truncate"
    """Captions beyond the 77 tokens of CLIP: cut, or read in pieces whose features are averaged."""
    text_projection: bool = True
    """Learn a linear map behind the frozen text tower; without it the loss on T trains only its own classifier."""
    common: bool = False
    """Learn C too, the mean of the fused tokens of the modalities that are there: samples without a modality in common
    can be matched by it. Train it with --modality-dropout."""
    descriptor: Literal["auto", "G", "U", "T", "C", "G+U", "G+T", "U+T", "U+C", "all"] = "auto"
    """Descriptor of the headline metrics and the retrieval picture: "auto" is U, or G without STR; "G+T" is both
    joined."""
