"""Settings of the study: those of STMI, and one for each change that is tried."""

from dataclasses import dataclass
from typing import Literal

from examples.stmi.settings import Settings as STMISettings


@dataclass(frozen=True)
class Settings(STMISettings):
    """STMI, and what is changed in it; the defaults change nothing."""

    residual_scale: float | None = None
    """Initial value of a learned scale per channel behind attention and MLP in every block of the tower: LayerScale."""
    tower_norm: Literal["layer", "batch"] = "layer"
    """Norm behind the last block of the tower."""
    feature_norm: bool = False
    """Batch norm of G and U, so that the triplet loss cannot shrink their distances."""
    patch_norm: bool = False
    """Batch norm of the patches before STR."""
    query_scale: float = 1.0
    """Standard deviation of the initial queries of STR."""
    query_in_token: Literal["added", "normed", "left out"] = "added"
    """Part of the query in its token: added to what it reads, brought to unit variance first, or not added."""
    edges_by: Literal["tokens", "normed"] = "tokens"
    """Tokens whose cosine makes the hyperedges: as they are, or each behind a batch norm of its own."""
    median_threshold: bool = False
    """Threshold of the hyperedges: the median cosine of two tokens in the batch, instead of `threshold`."""
    diversity: Literal["none", "tokens", "deviations"] = "none"
    """Term of the loss: squared cosine of two tokens of one modality, or of their deviations from the batch mean."""
