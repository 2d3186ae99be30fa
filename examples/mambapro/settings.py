"""Settings of MambaPro beyond data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision


@dataclass(frozen=True)
class Settings:
    """MambaPro without Mamba: additions to the tower, and modules after the tower."""

    adapters: bool = True
    """Use PFA: a small network beside the feed-forward network of every block."""
    hidden: int | None = None
    """Hidden width of the adapters; twice the width of a token by default."""
    zero_init: bool = True
    """Start the adapters at 0, so that a pretrained tower is unchanged at first."""
    num_prompts: int | None = None
    """Number of prompts per modality in every block of a pretrained tower (SRP): 4 by default, 0 for no prompts. The
    small vision transformer takes no prompts."""
    freeze: bool = True
    """Freeze a pretrained tower except for additions; the small vision transformer is always trainable."""
    aggregation: Literal["attention", "none"] = "attention"
    """Replacement of the Mamba aggregation: class tokens read the patches of all modalities ("attention"), or none."""
    num_heads: int = 4
    """Number of attention heads of the aggregation."""
    supervision: Supervision = "joined"
    """Supervision of class tokens: one joined feature of all modalities, or a single feature per modality."""
