"""Masks made on the fly by a method of `examples.prepare.masks`; no file is written."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from examples.prepare.masks.make import Settings, build, check, make
from examples.prepare.masks.sam3 import Nothing, Several
from stmi_layers.training import Data
from stmi_layers.training.record import Item

# Returns the mask of an item at the size of its first image.
Maker = Callable[[Item], NDArray[np.bool_]]


@dataclass(frozen=True)
class Segmentation:
    """Model for masks that are made on the fly."""

    mask_weights: Path | None = None
    """Local folder with SAM 2 or SAM 3, for --masks sam2 or sam3."""
    mask_prompt: str | None = None
    """Prompt: for SAM 3 the name of a thing, such as person, or several names, such as "car, truck, bus"; for SAM 2
    box, point or composite (default)."""
    several: Several = "middle"
    """Choice among several things that SAM 3 finds: the thing nearest the middle ("middle"), or the largest."""
    nothing: Nothing = "empty"
    """Policy if SAM 3 finds nothing: an empty mask, a mask of the whole image, or an error."""
    least: float = 0.5
    """Lowest score, 0 to 1, at which a thing of SAM 3 counts as found."""

    def anywhere(self) -> "Segmentation":
        """Return the same settings with an absolute path, which a command in another folder can use."""
        return replace(self, mask_weights=self.mask_weights and self.mask_weights.absolute())


def maker_of(segmentation: Segmentation, method: Literal["sam2", "sam3"], data: Data, *, device: str) -> Maker:
    """Return a function that makes the mask of an item from all of its images, as `examples.prepare.masks` does.

    Raises:
        FileNotFoundError: when the folder of the model, or a file in it, is missing.
        ValueError: when the folder or the name of the thing is not stated, or the folder holds another model.
    """
    if segmentation.mask_weights is None:
        raise ValueError(f"masks {method} need --mask-weights, a local folder with the model")
    if method == "sam3" and segmentation.mask_prompt is None:
        raise ValueError("masks sam3 need --mask-prompt, the name of the thing, such as person, or 'car, truck, bus'")
    settings = Settings(
        data=Path(),
        modalities=data.modalities,
        method=method,
        weights=segmentation.mask_weights,
        prompt=segmentation.mask_prompt or "composite",
        several=segmentation.several,
        nothing=segmentation.nothing,
        least=segmentation.least,
        ranges=data.ranges,
        device=device,
    )
    check(settings)
    segmenter, _ = build(settings)
    return lambda item: next(make([item], segmenter, settings))[0]
