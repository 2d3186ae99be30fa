"""Joint transforms: one flip and crop for all images and masks of a sample, random erasing per modality."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Shaped
from torch import Generator, Tensor

GREY = 0.5


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation. Flip and crop are common to all modalities and masks of a sample; each modality is
    erased on its own, and masks are never erased.

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
    generator: Generator | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Flip, pad and crop everything alike.

    Args:
        images: images of all modalities of a sample.
        masks: masks of all modalities of the sample.
        augmentation: probability of the flip and width of the border.
        boxes: left, top, right and bottom in pixels, right and bottom exclusive.
        generator: source of the randomness; the global one by default. The draws are those of torchvision's flip and
            crop.

    Returns:
        Images, masks and boxes. Boxes are clipped to the crop; a box outside of the crop gets area 0.
    """
    height, width = images.shape[-2:]
    padding = round(augmentation.padding * (height * width) ** 0.5)
    flip = torch.rand(1, generator=generator).item() < augmentation.flip
    down, right = (
        int(torch.randint(2 * padding + 1, (), generator=generator)) - padding if padding else 0 for _ in range(2)
    )
    corners = torch.zeros(0, 4) if boxes is None else boxes.clone()
    if flip:
        corners[:, 0::2] = width - corners[:, [2, 0]]
    corners[:, 0::2] = (corners[:, 0::2] - right).clamp(0, width)
    corners[:, 1::2] = (corners[:, 1::2] - down).clamp(0, height)
    return _window(images, flip, down, right), _window(masks, flip, down, right), corners


def _window(tensor: Tensor, flip: bool, down: int, right: int) -> Tensor:
    """Return a window of the same size, flipped or not, that starts `down` and `right` of the corner; 0 outside."""
    rows, rows_to = _overlap(tensor.shape[-2], down)
    columns, columns_to = _overlap(tensor.shape[-1], right)
    if flip:
        width = tensor.shape[-1]
        columns = slice(width - columns.stop, width - columns.start)
    part = tensor[..., rows, columns]
    part = part.flip(-1) if flip else part
    if not (down or right):
        return part
    moved = torch.zeros_like(tensor, memory_format=torch.contiguous_format)
    moved[..., rows_to, columns_to] = part
    return moved


def _overlap(size: int, shift: int) -> tuple[slice, slice]:
    """Return where a line and the same line moved by `shift` overlap: in the old line, and in the moved line."""
    first, last = max(shift, 0), min(size, size + shift)
    return slice(first, max(first, last)), slice(first - shift, max(first, last) - shift)


def erase(
    images: Float[Tensor, "modalities channels height width"],
    augmentation: Augmentation,
    *,
    generator: Generator | None = None,
) -> Tensor:
    """Paint a rectangle of every modality grey (0.5), each with its own probability, place and shape.

    The draws are those of torchvision's `RandomErasing`, from the global generator by default.
    """
    return erase_(images.clone(), augmentation, generator)


def erase_(images: Tensor, augmentation: Augmentation, generator: Generator | None = None) -> Tensor:
    """Do the work of `erase` in place."""
    for image in images:
        if torch.rand(1, generator=generator).item() < augmentation.erasing:
            top, left, height, width = _rectangle(image.shape[-2:], augmentation, generator)
            image[..., top : top + height, left : left + width] = GREY
    return images


def _rectangle(size: tuple[int, ...], augmentation: Augmentation, generator: Generator | None) -> tuple[int, ...]:
    """Draw a rectangle inside the image: top, left, height, width; empty after ten draws that are too large."""
    rows, columns = size
    logarithms = torch.log(torch.tensor(augmentation.erasing_aspect)).tolist()
    for _ in range(10):
        area = rows * columns * torch.empty(1).uniform_(*augmentation.erasing_area, generator=generator).item()
        aspect = torch.empty(1).uniform_(*logarithms, generator=generator).exp_().item()
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < rows and width < columns:
            top, left = (
                int(torch.randint(whole - part + 1, (1,), generator=generator))
                for whole, part in ((rows, height), (columns, width))
            )
            return top, left, height, width
    return 0, 0, 0, 0


def dilate(
    masks: Bool[Tensor, "*batch height width"], pixels: int, *, diagonals: bool = True
) -> Bool[Tensor, "*batch height width"]:
    """Grow the foreground by `pixels` in every direction, or, without `diagonals`, through shared sides only."""
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
    """Shrink the foreground by `pixels`; the border of the image does not count as background."""
    return ~dilate(~masks, pixels, diagonals=diagonals)
