"""Settings of retrieval by image, caption and mask beyond data, schedule, machine and tower.

Weights of its terms are `term_weights` of the schedule, by the names alignment, token_identity, coupling and mask; 0
turns a term off.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """Retrieval by image, caption and mask: modules after the tower."""

    text_encoder: Literal["words", "clip"] = "words"
    """Encoder of captions: a small transformer trained from scratch ("words"), or the frozen text tower of
    `architecture` ("clip")."""
    guide: Literal["given", "predicted", "none"] = "given"
    """Mask under which an image is read: the mask of the set if it has masks, the predicted mask, or none."""
    scales: tuple[int, ...] = ()
    """Sides in patches of the cells in which an image is read; by default those of 1, 2 and 4 that divide the grid."""
    beta: float = 0.1
    """Initial weight of the mask in the reading of an image, learned per head."""
    num_heads: int = 4
    """Number of attention heads of the pooling and of the small text encoder."""
    temperature: float = 0.07
    """Temperature of the identity tokens, and initial value of the learned temperature of the alignment."""
