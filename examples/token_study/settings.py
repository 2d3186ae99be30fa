"""Settings of the study: the settings of STMI, and a setting for each change."""

from dataclasses import dataclass
from typing import Literal

from examples.stmi.settings import Settings as STMISettings


@dataclass(frozen=True)
class Settings(STMISettings):
    """STMI with changes; the defaults change nothing."""

    residual_scale: float | None = None
    """Initial value of LayerScale: a learned scale per channel after attention and MLP in every block of the tower."""
    tower_norm: Literal["layer", "batch"] = "layer"
    """Norm after the last block of the tower."""
    feature_norm: bool = False
    """Batch norm of G and U, so that the triplet loss cannot shrink their distances."""
    patch_norm: bool = False
    """Batch norm of the patches before STR."""
    query_scale: float = 1.0
    """Standard deviation of the initial queries of STR."""
    query_in_token: Literal["added", "normed", "left out"] = "added"
    """Part of the query in its token: added to what it reads, added with unit variance ("normed"), or left out."""
    edges_by: Literal["tokens", "normed"] = "tokens"
    """Tokens whose cosine makes the hyperedges: unchanged, or each after a separate batch norm ("normed")."""
    median_threshold: bool = False
    """Use the median cosine of two tokens in the batch as threshold of the hyperedges, instead of `threshold`."""
    diversity: Literal["none", "tokens", "deviations"] = "none"
    """Diversity term: squared cosine of two tokens of one modality, or of their deviations from the batch mean."""
