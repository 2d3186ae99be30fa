"""Settings of IDEA: what is its own, beside data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision
from stmi_layers.deformable_readout import Offsets, Reference


@dataclass(frozen=True)
class Settings:
    """IDEA: captions inside the tower, and what follows it."""

    text_encoder: Literal["words", "clip"] = "words"
    """Reader of the captions: a small transformer learned here, or the frozen text tower of `architecture`."""
    num_prompts: int = 0
    """Learned words in every caption for the frozen text tower, which then reads every batch anew; without them it
    reads the captions once."""
    num_heads: int = 4
    """Attention heads of the small text encoder."""
    dropout: float = 0.1
    """Probability, in training, that a number of the inverse network is zeroed."""
    aggregation: bool = True
    """CDA; without it the descriptor are the tokens of the tower."""
    window: int = 4
    """Rows and columns of patches that an offset depends on; no more than the grid has."""
    stride: int = 2
    """Patches from one window to the next."""
    max_offset: tuple[float, float] = (4.0, 4.0)
    """Rows and columns of patches that a sample moves at most."""
    offsets: Offsets = "shared"
    """Offsets of all modalities from one network, or of each from its own, "diagonal" with one number for both axes."""
    reference: Reference = "centred"
    """Place of a sample that does not move: the centre of its window, or half a patch further down and to the right."""
    readout_heads: int = 1
    """Attention heads of CDA."""
    supervision: Supervision = "joined"
    """Tokens of the tower in the objective: those of all modalities joined, or a feature per modality."""
    descriptor: Literal["auto", "F", "FC", "F+FC", "all"] = "auto"
    """Descriptor of the headline metrics: class half (F), caption half (FC), both, or all features; "auto" takes both
    halves, and what there is of them."""
