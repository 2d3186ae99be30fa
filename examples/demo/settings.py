"""Settings of DeMo: what is its own, beside data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision

Fusion = Literal["experts", "subsets", "none"]


@dataclass(frozen=True)
class Settings:
    """DeMo: what follows the tower."""

    pooling: bool = True
    """PIFE: every global token takes in the mean of its patches."""
    fusion: Fusion = "experts"
    """Readout of every subset of the modalities: HDM behind ATMoE, HDM alone ("subsets"), or nothing."""
    readout_heads: int = 4
    """Attention heads of HDM; the research code makes them 64 wide."""
    expert_heads: int = 4
    """Heads of ATMoE, each with an expert per subset."""
    dropout: float = 0.1
    """Share of the attention weights of HDM that are dropped in training."""
    subsets: Literal["all", "ends"] = "all"
    """Subsets that have a query: all 2^M - 1, or each modality alone and all together."""
    incomplete: Literal["read", "drop"] = "read"
    """A subset of which some modalities are missing: read from the others, or left out."""
    supervision: Supervision = "joined"
    """Class tokens as one feature of all modalities, or as a feature per modality."""
