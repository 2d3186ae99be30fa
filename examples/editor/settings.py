"""Settings of EDITOR: what is its own, beside data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision


@dataclass(frozen=True)
class Settings:
    """EDITOR: what follows the tower."""

    aggregation: bool = True
    """HMA and everything around it; without it the class tokens are all there is."""
    keep_per_head: int = 2
    """Patches that every head of the tower selects in every modality, by attention rollout."""
    num_heads: int = 4
    """Attention heads of HMA."""
    mlp_ratio: float = 4.0
    """Hidden width of the feed-forward networks of HMA, in widths of a token."""
    centre_rate: float = 0.8
    """Share of the new mean in a moved centre of OCFR."""
    centre_start: Literal["mean", "zero"] = "mean"
    """Start of the centre of an identity: its first mean, or 0 as in the research code."""
    supervision: Supervision = "joined"
    """Class tokens as one feature of all modalities, or as a feature per modality."""
