"""Settings of the toy method."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """Sizes of the toy method."""

    width: int = 8
    """Width of the tokens."""
    agreement: bool = False
    """Add a term over the batch that asks the modalities to agree on which samples are alike."""
    reads_captions: bool = False
    """Learn a feature from the first letters of the captions."""
