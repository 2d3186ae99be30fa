"""Settings of retrieval by image, caption and mask: what is its own, beside data, schedule, machine and tower.

Weights of its terms are `term_weights` of the schedule, by the names alignment, token_identity, coupling and mask; 0
does without one.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """Retrieval by image, caption and mask: what follows the tower."""

    text_encoder: Literal["words", "clip"] = "words"
    """Reader of the captions: a small transformer learned here, or the frozen text tower of `architecture`."""
    guide: Literal["given", "predicted", "none"] = "given"
    """Mask under which an image is read: the one of the set where it has masks, the predicted one, or none."""
    scales: tuple[int, ...] = ()
    """Sides, in patches, of the cells an image is read in; () takes those of 1, 2 and 4 that divide the grid."""
    beta: float = 0.1
    """Initial weight of the mask in that reading, learned per head."""
    num_heads: int = 4
    """Attention heads of the reading and of the small text encoder."""
    temperature: float = 0.07
    """Temperature of the identity tokens, and the initial one of the alignment, which is learned."""
