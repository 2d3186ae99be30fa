"""Settings of STMI beyond data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.clip_text import Overflow

Fusion = Literal["hypergraph", "self-attention", "mlp", "none", "concatenation"]


@dataclass(frozen=True)
class Settings:
    """STMI: modules after the tower."""

    reallocation: bool = True
    """Use STR and all modules after it; without STR the descriptor is G."""
    fusion: Fusion = "hypergraph"
    """Interaction of the semantic tokens: CHI ("hypergraph"), or a replacement from Table 4 of the paper."""
    num_tokens: int = 4
    """Number of semantic tokens per modality (K)."""
    num_heads: int = 4
    """Number of attention heads of STR, the readout and the text encoder."""
    similarity: Literal["cosine", "euclidean"] = "cosine"
    """Similarity of semantic tokens that builds the hypergraph."""
    threshold: float = 0.5
    """Lowest cosine, or largest Euclidean distance, at which two semantic tokens share a hyperedge."""
    text_encoder: Literal["words", "clip"] = "words"
    """Encoder of captions: a small transformer trained from scratch ("words"), or the frozen text tower of
    `architecture` ("clip")."""
    caption_overflow: Overflow = "truncate"
    """Policy for captions longer than the 77 tokens of CLIP: cut, or read in pieces whose features are averaged."""
    text_projection: bool = True
    """Learn a linear layer after the frozen text tower; without it the loss on T trains only its own classifier."""
    common: bool = False
    """Also learn C, the mean of the fused tokens of present modalities, by which samples without a common modality can
    be matched. Train C with --modality-dropout."""
    descriptor: Literal["auto", "G", "U", "T", "C", "G+U", "G+T", "U+T", "U+C", "all"] = "auto"
    """Descriptor of the headline metrics and the retrieval figure: "auto" is U, or G without STR; "G+T" is both
    joined."""
