"""Joint transforms: one geometry for all that belongs to a sample, one erasing for every modality."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Tensor

from stmi_layers.training._torchvision import tv_tensors, v2

GREY = 0.5


@dataclass(frozen=True)
class Augmentation:
    """Variation of training images. Flip and crop are common to all modalities and masks of a sample; each modality is
    erased on its own, and its mask never.

    Attributes:
        flip: probability of mirroring left and right.
        padding: black border from which the crop is taken, as a share of sqrt(height * width): 10 pixels at 256 x 128.
        erasing: probability of painting a rectangle grey (0.5), per modality.
        erasing_area: smallest and largest area of the rectangle, as shares of the image.
        erasing_aspect: smallest and largest height over width of the rectangle.
    """

    flip: float = 0.5
    padding: float = 10 / (256 * 128) ** 0.5
    erasing: float = 0.5
    erasing_area: tuple[float, float] = (0.02, 0.33)
    erasing_aspect: tuple[float, float] = (0.3, 3.3)

    def __post_init__(self) -> None:
        if not (0 <= self.flip <= 1 and 0 <= self.erasing <= 1):
            raise ValueError(f"flip and erasing must lie in [0, 1]; received {self.flip} and {self.erasing}")
        if self.padding < 0:
            raise ValueError(f"padding must not be negative; received {self.padding}")
        (least, most), (flattest, tallest) = self.erasing_area, self.erasing_aspect
        if not (0 < least <= most <= 1 and 0 < flattest <= tallest):
            raise ValueError(
                "erasing_area must rise within (0, 1], erasing_aspect be positive and rise; "
                f"received {self.erasing_area} and {self.erasing_aspect}"
            )


def move(
    images: Shaped[Tensor, "modalities channels height width"],
    masks: Bool[Tensor, "modalities height width"],
    augmentation: Augmentation,
    *,
    boxes: Float[Tensor, "boxes 4"] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Flip, pad and crop everything alike.

    Args:
        images: of all modalities.
        masks: of all modalities.
        augmentation: says how far.
        boxes: left, top, right and bottom in pixels, right and bottom exclusive.

    Returns:
        Images, masks and boxes. Boxes end where the crop does; one that has left it has no area any more.
    """
    height, width = images.shape[-2:]
    padding = round(augmentation.padding * (height * width) ** 0.5)
    geometry = v2.Compose([v2.RandomHorizontalFlip(augmentation.flip), v2.RandomCrop((height, width), padding=padding)])
    # Its constructor is __new__, which the type checker does not see behind the one of Tensor.
    box_type: Any = tv_tensors.BoundingBoxes
    corners = box_type(torch.zeros(0, 4) if boxes is None else boxes, format="XYXY", canvas_size=(height, width))
    moved = geometry(tv_tensors.Image(images), tv_tensors.Mask(masks), corners)
    images, masks, corners = (part.as_subclass(Tensor) for part in moved)
    return images, masks, corners


def erase(images: Float[Tensor, "modalities channels height width"], augmentation: Augmentation) -> Tensor:
    """Paint a rectangle of every modality grey (0.5), each with its own probability, place and shape."""
    scale, ratio = augmentation.erasing_area, augmentation.erasing_aspect
    one = v2.RandomErasing(augmentation.erasing, scale=scale, ratio=ratio, value=GREY)
    return torch.stack([one(image) for image in images])


def dilate(
    masks: Bool[Tensor, "*batch height width"], pixels: int, *, diagonals: bool = True
) -> Bool[Tensor, "*batch height width"]:
    """Grow the foreground by `pixels` in every direction, or, without `diagonals`, through shared sides alone."""
    flat = masks.reshape(-1, 1, *masks.shape[-2:]).float()
    if diagonals:
        flat = F.max_pool2d(flat, 2 * pixels + 1, stride=1, padding=pixels)
    for _ in range(0 if diagonals else pixels):
        rows, columns = (F.max_pool2d(flat, kernel, 1, [size // 2 for size in kernel]) for kernel in ((3, 1), (1, 3)))
        flat = rows.maximum(columns)
    return flat.view(masks.shape) > 0


def erode(
    masks: Bool[Tensor, "*batch height width"], pixels: int, *, diagonals: bool = True
) -> Bool[Tensor, "*batch height width"]:
    """Shrink the foreground by `pixels`; the border of the image takes nothing away."""
    return ~dilate(~masks, pixels, diagonals=diagonals)
