"""Class tokens of a tower as features of a model: joined to one feature, or one feature per modality."""

import re
from collections.abc import Collection, Sequence
from typing import Literal

from torch import Tensor

from stmi_layers.training import Outputs

Supervision = Literal["joined", "single"]


def class_token_widths(
    modalities: Sequence[str], dim: int, supervision: Supervision, letter: str = "G"
) -> dict[str, int]:
    """Widths of the features by name: "G", or "G_RGB" and so on, or with another `letter`.

    Examples:
        >>> class_token_widths(("RGB", "near-IR"), 8, "joined"), class_token_widths(("RGB", "near-IR"), 8, "single")
        ({'G': 16}, {'G_RGB': 8, 'G_near_IR': 8})
    """
    if supervision == "joined":
        return {letter: len(modalities) * dim}
    return {f"{letter}_{re.sub('[^A-Za-z0-9]', '_', name)}": dim for name in modalities}


def class_token_features(class_tokens: Tensor, present: Tensor | None, names: Collection[str]) -> Outputs:
    """The features that `class_token_widths` names; one of a single modality is supervised where this is present.

    Args:
        class_tokens: (batch modalities dim), 0 where a modality is absent.
        present: (batch modalities), None where all are present.
        names: one for the joined feature, or one per modality.
    """
    if len(names) == 1:
        return Outputs(dict.fromkeys(names, class_tokens.flatten(1)))
    features = dict(zip(names, class_tokens.unbind(1), strict=True))
    return Outputs(features, rows={} if present is None else dict(zip(names, present.unbind(1), strict=True)))
