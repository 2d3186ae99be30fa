"""Settings of Signal: what is its own, beside data, schedule, machine and tower.

Weights of the two alignments are `term_weights` of the schedule, by the names GAM and LAM; 0 does without one.
"""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision
from stmi_layers.deformable import Points
from stmi_layers.interaction import Unselected


@dataclass(frozen=True)
class Settings:
    """Signal: what follows the tower."""

    interaction: bool = True
    """SIM, selection and interaction; without it the descriptor is G, the class tokens."""
    keep: float = 0.5
    """Share of the patches that a class token selects per modality; all modalities together keep more."""
    learned_selection: bool = True
    """Learn what a class token selects in other modalities; otherwise it stays what the random start makes it."""
    unselected: Unselected = "hidden"
    """Patches that are not selected leave the attention, or are read as zero vectors."""
    num_heads: int = 8
    """Attention heads of SIM."""
    anchor: Literal["every", "first"] = "every"
    """Modality that GAM exchanges between samples: each in turn, or the first alone."""
    negatives: Literal["others", "all"] = "others"
    """Samples that GAM tells apart: those of other identities, or all."""
    window: int = 4
    """Rows and columns of patches per position at which LAM compares the modalities."""
    points: Points = "inside"
    """Positions of LAM: always on the map, cut off at its border, or as in the research code, partly beyond it."""
    offset_channels: Literal[1, 2] = 2
    """Offsets per position of LAM: of row and column, or one for both."""
    supervision: Supervision = "joined"
    """Class tokens in the objective: joined to one feature, or a feature per modality."""
