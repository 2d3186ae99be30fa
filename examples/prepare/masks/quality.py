"""Quality of a mask without ground truth, and reasons to doubt the mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from examples.prepare.masks.regions import Mask, Probability, clean, frame_border, mean_overlap

LEAST_AREA = 0.02
MOST_AREA = 0.9
MOST_BORDER = 0.5
LEAST_AGREEMENT = 0.5
LEAST_STABILITY = 0.33
MOST_REMOVED = 0.25
SURE = 0.73  # probability at a logit of 1; the stability score of SAM compares masks at logits of 1 and -1
UNSURE = 0.27


@dataclass(frozen=True)
class Quality:
    """Quality of a mask, as shares in [0, 1]; None if unknown. Of masks made elsewhere only area and border are known.

    Attributes:
        area: share of the image that is foreground.
        border: share of the image's outermost pixels that are foreground.
        agreement: mean intersection over union between the cleaned masks of all pairs of modalities; None for one.
        stability: foreground area at a threshold of 0.73, divided by the area at 0.27.
        removed: share of the foreground before cleaning that was outside the largest region.
        found: number of things found by name, one number per present modality; None for a method without names.
    """

    area: float
    border: float
    agreement: float | None = None
    stability: float | None = None
    removed: float | None = None
    found: Sequence[int] | None = None


def measure(mask: Mask) -> Quality:
    """Measure a finished mask."""
    return Quality(area=float(mask.mean()), border=float(frame_border(mask).mean()))


def measure_made(
    mask: Mask, probabilities: Probability, raw: Mask, used: Probability, found: Sequence[int] | None = None
) -> Quality:
    """Measure a mask that has just been made.

    Args:
        mask: the cleaned mask.
        probabilities: probability maps of all modalities, (modalities, height, width).
        raw: mask before cleaning.
        used: probability map behind `raw`: the mean over the modalities, or the map of one modality.
        found: see `Quality`.
    """
    shown = measure(mask)
    wide = int((used > UNSURE).sum())
    return Quality(
        area=shown.area,
        border=shown.border,
        agreement=mean_overlap([clean(one > 0.5) for one in probabilities]),
        stability=float((used > SURE).sum() / wide) if wide else 1.0,
        removed=float((raw & ~mask).sum() / raw.sum()) if raw.any() else 0.0,
        found=found,
    )


def find_doubts(quality: Quality) -> dict[str, float]:
    """Find reasons to doubt a mask, and their strength in (0, 1]; {} if there is no doubt.

    >>> find_doubts(Quality(area=0.3, border=0.1, agreement=0.25))
    {'modalities disagree': 0.75}
    """
    found = quality.found or [1]
    agreement, stability, removed = (
        default if value is None else value
        for value, default in ((quality.agreement, 1.0), (quality.stability, 1.0), (quality.removed, 0.0))
    )
    doubts = {
        "empty": float(quality.area == 0),
        "small": (1 - quality.area / LEAST_AREA) * (0 < quality.area < LEAST_AREA),
        "fills the image": (quality.area - MOST_AREA) / (1 - MOST_AREA) * (quality.area > MOST_AREA),
        "touches the border": quality.border * (quality.border > MOST_BORDER),
        "modalities disagree": (1 - agreement) * (agreement < LEAST_AGREEMENT),
        "unstable": (1 - stability) * (stability < LEAST_STABILITY),
        "scattered": removed * (removed > MOST_REMOVED),
        "nothing found": float(np.mean([count == 0 for count in found])),
        "several found": 1 - 1 / max(1, *found),
    }
    return {reason: float(np.round(strength, 6)) for reason, strength in doubts.items() if strength > 0}
