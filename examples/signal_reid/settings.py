"""Settings of Signal beyond data, schedule, machine and tower.

Weights of the two alignments are `term_weights` of the schedule, by the names GAM and LAM; 0 turns a term off.
"""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision
from stmi_layers.deformable import Points
from stmi_layers.interaction import Unselected


@dataclass(frozen=True)
class Settings:
    """Signal: modules after the tower."""

    interaction: bool = True
    """Use SIM (selection and interaction); without it the descriptor is G, the class tokens."""
    keep: float = 0.5
    """Share of the patches that a class token selects per modality, 0 to 1; all class tokens together keep more."""
    learned_selection: bool = True
    """Learn the selection of a class token in other modalities; otherwise the selection stays as it was initialised."""
    unselected: Unselected = "hidden"
    """Patches that are not selected: hidden from the attention, or read as zero vectors ("zeroed")."""
    num_heads: int = 8
    """Number of attention heads of SIM."""
    anchor: Literal["every", "first"] = "every"
    """Modality that GAM exchanges between samples: every modality in turn, or only the first."""
    negatives: Literal["others", "all"] = "others"
    """Negatives of GAM: samples of other identities, or all other samples."""
    window: int = 4
    """Side, in patches, of the window of a position at which LAM compares the modalities."""
    points: Points = "inside"
    """Positions of LAM: always inside the map, clamped at its border, or partly outside as in the research code."""
    offset_channels: Literal[1, 2] = 2
    """Number of offsets per position of LAM: 2 for row and column, or 1 for both."""
    supervision: Supervision = "joined"
    """Supervision of class tokens: one joined feature of all modalities, or a single feature per modality."""
