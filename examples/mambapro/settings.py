"""Settings of MambaPro: what is its own, beside data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision


@dataclass(frozen=True)
class Settings:
    """MambaPro without Mamba: what goes into the tower, and what follows it."""

    adapters: bool = True
    """PFA, a small network beside the feed-forward network of every block."""
    hidden: int | None = None
    """Width inside the adapters; twice that of the tokens by default."""
    zero_init: bool = True
    """Start the adapters at 0, so that a pretrained tower starts as it was."""
    num_prompts: int | None = None
    """SRP, prompts per modality in every block of a pretrained tower, 4 by default; 0 for none. The small vision
    transformer takes none."""
    freeze: bool = True
    """Freeze a pretrained tower but for what is added; the small vision transformer has to learn and always does."""
    aggregation: Literal["attention", "none"] = "attention"
    """In the place of the Mamba aggregation: class tokens read the patches of all modalities, or nothing does."""
    num_heads: int = 4
    """Attention heads of that reading."""
    supervision: Supervision = "joined"
    """Class tokens in the objective: joined to one feature, or a feature per modality."""
