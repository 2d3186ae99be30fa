"""Settings of EDITOR beyond data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision


@dataclass(frozen=True)
class Settings:
    """EDITOR: modules after the tower."""

    aggregation: bool = True
    """Use HMA, and with it token selection, BCC and OCFR; without it the model has only class tokens."""
    keep_per_head: int = 2
    """Number of patches that every head of the tower selects in every modality, by attention rollout."""
    num_heads: int = 4
    """Number of attention heads of HMA."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward networks of HMA, as a multiple of the token width."""
    centre_rate: float = 0.8
    """Update rate of the centres of OCFR: share of the new mean in a moved centre, 0 to 1."""
    centre_start: Literal["mean", "zero"] = "mean"
    """Start of an identity's centre: its first mean ("mean"), or 0 as in the research code ("zero")."""
    supervision: Supervision = "joined"
    """Supervision of class tokens: one joined feature of all modalities, or a single feature per modality."""
