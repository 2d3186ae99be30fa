"""Fallback without SAM 2 weights: two colour mixtures, and the assumption that the object is in the middle.

This is not a segmentation model: nothing is learned, and no object is known. In each image a Gaussian mixture over
colour is fitted to the probable foreground, and another mixture to the probable background. The first estimate is a
bell around the centre of the image; later estimates come from the mixtures. So an object must be near the centre, fill
about as much of the image as `object_size` says, and differ from its surroundings in colour or brightness. In an image
without contrast the result is the bell.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from examples.prepare.masks.regions import Probability

WORKING_SIZE = 64  # pixels; at 96 the measured overlap with true masks is the same
COMPONENTS = 4
ROUNDS = 3
HIGHEST_PRIOR = 0.9
COLOUR_NOISE = 0.05  # added to variances, in units of the image's variance, so that flat regions stay uncertain


class Classical:
    """Foreground probabilities by colour and place, deterministic.

    Args:
        object_size: standard deviation of the bell, in halves of the image's sides; the object should fill about an
            ellipse of this radius.
        device: device of the computation.

    Raises:
        ValueError: when `object_size` is not positive.
    """

    def __init__(self, *, object_size: float = 0.5, device: torch.device | str = "cpu") -> None:
        if not object_size > 0:
            raise ValueError(f"object_size must be positive (0.5: the object fills the image); received {object_size}")
        self.object_size, self.device = object_size, torch.device(device)
        self.name = (
            f"classical fallback, NOT SAM 2 (colour mixtures around the centre of the image, object size {object_size})"
        )

    def __call__(self, images: Sequence[Image.Image]) -> list[Probability]:
        """Return one map per image, at the size of the image."""
        working = (WORKING_SIZE, WORKING_SIZE)
        resized = [np.array(image.convert("RGB").resize(working, Image.Resampling.BILINEAR)) for image in images]
        stacked = torch.from_numpy(np.stack(resized)).to(self.device).permute(0, 3, 1, 2) / 255
        maps = segment(stacked, self.object_size)[:, None]
        return [
            F.interpolate(one[None], (image.height, image.width), mode="bilinear", align_corners=False)[0, 0]
            .cpu()
            .numpy()
            for one, image in zip(maps, images, strict=True)
        ]


def segment(images: Float[Tensor, "batch 3 height width"], object_size: float) -> Float[Tensor, "batch height width"]:
    """Compute the probability of foreground.

    Args:
        images: colours in [0, 1]; a grey image has three equal channels.
        object_size: see `Classical`.
    """
    height, width = images.shape[-2:]
    colours = opponent_colours(images).flatten(2)
    prior = (HIGHEST_PRIOR * centre_bell(height, width, object_size, images.device)).clamp(min=1e-3).flatten()
    foreground = prior.expand(len(images), -1)
    for _ in range(ROUNDS):
        evidence = mixture_log_density(colours, foreground) - mixture_log_density(colours, 1 - foreground)
        foreground = torch.sigmoid(evidence + prior.logit())
    return foreground.unflatten(1, (height, width))


def centre_bell(height: int, width: int, spread: float, device: torch.device) -> Float[Tensor, "height width"]:
    """Return a bell that is 1 at the centre of the image; `spread` is in halves of the sides."""
    y, x = (torch.linspace(-1, 1, side, device=device) for side in (height, width))
    return torch.exp(-0.5 * (y[:, None] ** 2 + x**2) / spread**2)


def opponent_colours(images: Float[Tensor, "batch 3 height width"]) -> Float[Tensor, "batch 3 height width"]:
    """Return brightness, red against green, and blue against yellow, with mean 0 and variance about 1 per image."""
    red, green, blue = images.unbind(dim=1)
    colours = torch.stack([(red + green + blue) / 3, red - green, blue - (red + green) / 2], dim=1)
    centred = colours - colours.mean(dim=(2, 3), keepdim=True)
    return centred / (colours.std(dim=(2, 3), keepdim=True) + 0.02)  # 0.02: noise of a grey image is not colour


def mixture_log_density(
    points: Float[Tensor, "batch dim pixels"], weights: Float[Tensor, "batch pixels"]
) -> Float[Tensor, "batch pixels"]:
    """Return the log density of a Gaussian mixture at the weighted points it is fitted to.

    The components start as slices of equal weight along the axis of largest variance, so that nothing is random.
    """
    identity = COLOUR_NOISE * torch.eye(points.shape[1], device=points.device)
    share = _slices(points, weights) * weights[:, None]
    for _ in range(ROUNDS):
        size = share.sum(dim=2).clamp(min=1e-3)
        centre = share @ points.mT / size[..., None]
        offset = points[:, None] - centre[..., None]
        covariance = torch.einsum("bkn,bkcn,bkdn->bkcd", share, offset, offset) / size[..., None, None] + identity
        factor = torch.linalg.cholesky(covariance)
        distance = torch.linalg.solve_triangular(factor, offset, upper=False).square().sum(dim=2)
        volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)
        density = (size / size.sum(dim=1, keepdim=True)).log()[..., None] - distance / 2 - volume[..., None]
        share = density.softmax(dim=1) * weights[:, None]
    return density.logsumexp(dim=1)


def _slices(
    points: Float[Tensor, "batch dim pixels"], weights: Float[Tensor, "batch pixels"]
) -> Float[Tensor, "batch components pixels"]:
    covariance = (points * weights[:, None]) @ points.mT
    axis = torch.linalg.eigh(covariance).eigenvectors[..., -1]
    order = (axis[..., None] * points).sum(dim=1).argsort(dim=1, stable=True)
    passed = weights.gather(1, order).cumsum(dim=1)
    rank = (COMPONENTS * passed / passed[:, -1:]).long().clamp(max=COMPONENTS - 1)
    component = torch.empty_like(order).scatter_(1, order, rank)
    return F.one_hot(component, COMPONENTS).to(points.dtype).mT
