"""Settings of DeMo beyond data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision

Fusion = Literal["experts", "subsets", "none"]


@dataclass(frozen=True)
class Settings:
    """DeMo: modules after the tower."""

    pooling: bool = True
    """Use PIFE: the mean of the patches is added to every global token."""
    fusion: Fusion = "experts"
    """Readout of every subset of the modalities: HDM and ATMoE ("experts"), HDM alone ("subsets"), or none."""
    readout_heads: int = 4
    """Number of attention heads of HDM; heads of the research code are 64 wide."""
    expert_heads: int = 4
    """Number of heads of ATMoE, each with an expert per subset."""
    dropout: float = 0.1
    """Dropout of HDM: share of its attention weights that are dropped in training."""
    subsets: Literal["all", "ends"] = "all"
    """Subsets with a query: all 2^M - 1 subsets of M modalities, or each modality alone and all together ("ends")."""
    incomplete: Literal["read", "drop"] = "read"
    """Policy for a subset with a missing modality: read it from the other modalities, or drop it."""
    supervision: Supervision = "joined"
    """Supervision of class tokens: one joined feature of all modalities, or a single feature per modality."""
