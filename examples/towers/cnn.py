"""Six-layer convolutional network: the plain baseline that a transformer from scratch has to beat."""

from itertools import pairwise

from einops import rearrange
from torch import Tensor, nn


class ConvolutionalBackbone(nn.Module):
    """Six 3 x 3 convolutions, three of them strided, and the mean over the image; masks and cameras are ignored.

    Args:
        image_size: height and width of the images in pixels, multiples of 8.
        dim: number of channels of the last two layers.
    """

    def __init__(self, image_size: tuple[int, int], *, dim: int = 128) -> None:
        super().__init__()
        if any(side % 8 for side in image_size):
            raise ValueError(f"image_size must be multiples of 8; received {image_size}")
        self.dim, self.grid = dim, (image_size[0] // 8, image_size[1] // 8)
        widths = (3, dim // 4, dim // 4, dim // 2, dim // 2, dim, dim)
        layers: list[nn.Module] = []
        for index, (narrow, wide) in enumerate(pairwise(widths)):
            stride = 2 if index % 2 == 0 else 1
            layers += [nn.Conv2d(narrow, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(
        self, images: Tensor, masks: Tensor | None = None, cameras: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return patch tokens and their mean per modality, for images in [0, 1]."""
        features = self.layers((images.flatten(0, 1) - 0.5) / 0.5)
        patches = rearrange(features, "(b m) d rows columns -> b m (rows columns) d", m=images.shape[1])
        return patches, patches.mean(dim=2)
