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
    """Return the widths of the features by name: "G", or "G_RGB" and so on, or with another `letter`.

    Examples:
        >>> class_token_widths(("RGB", "near-IR"), 8, "joined"), class_token_widths(("RGB", "near-IR"), 8, "single")
        ({'G': 16}, {'G_RGB': 8, 'G_near_IR': 8})
    """
    if supervision == "joined":
        return {letter: len(modalities) * dim}
    return {f"{letter}_{re.sub('[^A-Za-z0-9]', '_', name)}": dim for name in modalities}


def class_token_features(class_tokens: Tensor, present: Tensor | None, names: Collection[str]) -> Outputs:
    """Return the features that `class_token_widths` names; a single modality is supervised where it is present.

    Args:
        class_tokens: class tokens (batch modalities dim), 0 where a modality is absent.
        present: present modalities (batch modalities); None if all are present.
        names: one name for the joined feature, or one name per modality.
    """
    if len(names) == 1:
        return Outputs(dict.fromkeys(names, class_tokens.flatten(1)))
    features = dict(zip(names, class_tokens.unbind(1), strict=True))
    return Outputs(features, rows={} if present is None else dict(zip(names, present.unbind(1), strict=True)))
