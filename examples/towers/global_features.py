"""Descriptors of the global tokens of a tower: one of all modalities joined, or one per modality.

Published methods supervise the tower besides what they put on it, on some benchmarks by one loss and on others by one
loss per modality.
"""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

Supervision = Literal["joined", "apart"]


def global_widths(modalities: Sequence[str], dim: int, supervision: Supervision) -> dict[str, int]:
    """Widths of the descriptors by name: "global", or "global_RGB" and so on.

    Examples:
        >>> global_widths(("RGB", "NI"), 8, "joined"), global_widths(("RGB", "NI"), 8, "apart")
        ({'global': 16}, {'global_RGB': 8, 'global_NI': 8})
    """
    if supervision == "joined":
        return {"global": len(modalities) * dim}
    return {f"global_{name}": dim for name in modalities}


def global_features(
    globals_: Tensor, present: Tensor | None, widths: dict[str, int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the global tokens (batch modalities dim) into the descriptors of `global_widths`.

    Returns:
        The descriptors, and the rows of each that are supervised: of one modality, the samples that have it.
    """
    if "global" in widths:
        return {"global": globals_.flatten(1)}, {}  # (b m*d)
    names = [name for name in widths if name.startswith("global_")]
    rows = {} if present is None else dict(zip(names, present.unbind(1), strict=True))
    return dict(zip(names, globals_.unbind(1), strict=True)), rows  # (b d) each
