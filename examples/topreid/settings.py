"""Settings of TOP-ReID: what is its own, beside data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision

Reconstruction = Literal["none", "loss", "loss+filling"]


@dataclass(frozen=True)
class Settings:
    """TOP-ReID: the number of towers, and what follows them."""

    towers: Literal["separate", "shared"] = "separate"
    """A tower per modality, all of which start alike, or one tower for all modalities."""
    permutation: bool = True
    """TPM; without it the descriptor is G, the class tokens."""
    reconstruction: Reconstruction = "loss+filling"
    """CRM: none, a loss in training alone, or also what fills in missing modalities at test time."""
    reconstruction_depth: int = 1
    """Transformer blocks that make the tokens of one modality of those of another."""
    num_heads: int = 8
    """Attention heads of TPM and CRM."""
    supervision: Supervision = "joined"
    """Class tokens in the objective: joined to one feature, or a feature per modality."""
