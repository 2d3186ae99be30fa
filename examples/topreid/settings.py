"""Settings of TOP-ReID beyond data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision

Reconstruction = Literal["none", "loss", "loss+filling"]


@dataclass(frozen=True)
class Settings:
    """TOP-ReID: number of towers, and modules after the towers."""

    towers: Literal["separate", "shared"] = "separate"
    """Towers: a separate tower per modality, with equal initial weights, or one tower shared by all modalities."""
    permutation: bool = True
    """Use TPM; without it the descriptor is G, the class tokens."""
    reconstruction: Reconstruction = "loss+filling"
    """Use of CRM: none, only as a loss in training, or also to fill in missing modalities at test time."""
    reconstruction_depth: int = 1
    """Number of transformer blocks of CRM that predict the tokens of one modality from those of another."""
    num_heads: int = 8
    """Number of attention heads of TPM and CRM."""
    supervision: Supervision = "joined"
    """Supervision of class tokens: one joined feature of all modalities, or a single feature per modality."""
