"""Settings of IDEA beyond data, schedule, machine and tower."""

from dataclasses import dataclass
from typing import Literal

from examples.towers.class_tokens import Supervision
from stmi_layers.deformable_readout import Offsets, Reference


@dataclass(frozen=True)
class Settings:
    """IDEA: captions inside the tower, and modules after the tower."""

    text_encoder: Literal["words", "clip"] = "words"
    """Encoder of captions: a small transformer trained from scratch ("words"), or the frozen text tower of
    `architecture` ("clip")."""
    num_prompts: int = 0
    """Learned words in every caption for the frozen text tower, which then reads every batch anew; without them it
    reads the captions once."""
    num_heads: int = 4
    """Number of attention heads of the small text encoder."""
    dropout: float = 0.1
    """Dropout of the inverse network in training, as a probability."""
    aggregation: bool = True
    """Use CDA; without it the descriptor consists of the tokens of the tower."""
    window: int = 4
    """Size of a window in patches, at most that of the grid: an offset depends on the patches of its window."""
    stride: int = 2
    """Step from one window to the next, in patches."""
    max_offset: tuple[float, float] = (4.0, 4.0)
    """Largest offset of a sample down and across, in patches."""
    offsets: Offsets = "shared"
    """Offset networks: one for all modalities ("shared"), one per modality ("separate"), or one per modality with a
    single number for both axes ("diagonal")."""
    reference: Reference = "centred"
    """Place of a sample at offset 0: the centre of its window, or half a patch further down and right ("shifted")."""
    readout_heads: int = 1
    """Number of attention heads of CDA."""
    supervision: Supervision = "joined"
    """Supervision of tokens of the tower: one joined feature of all modalities, or a single feature per modality."""
    descriptor: Literal["auto", "F", "FC", "F+FC", "all"] = "auto"
    """Descriptor of the headline metrics: class half (F), caption half (FC), both, or all features; "auto" takes the
    halves that the model has."""
