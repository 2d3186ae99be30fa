"""Baselines without training: retrieval by chance, the mask, the background and raw pixels of a test split.

    python -m examples.prepare.trivial_baselines --data DIR --modalities RGB NI TI

The result of a model is meaningful only above these scores.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from examples import cli as command
from stmi_layers import ReIDMetrics
from stmi_layers.training import Data, load_split, protocol_for, score, table
from stmi_layers.training.settings import Range
from stmi_layers.training.transforms import dilate


@dataclass(frozen=True)
class Arguments:
    data: Path
    """Folder of a set with masks."""
    modalities: tuple[str, ...] = ("RGB", "NI", "TI")
    """Modalities to read."""
    query_cameras: tuple[int, ...] = ()
    """Cameras that query the other cameras; if empty, every image is both query and gallery."""
    image_size: tuple[int, int] = (64, 64)
    """Height and width in pixels that all images are resized to."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Counts that become black and white in images of more than 8 bits, by modality: TI 7012 9411, or TI image."""
    seed: int = 0
    """Seed of the random features."""


def main(arguments: Arguments) -> dict[str, ReIDMetrics]:
    """Score features that need no training, and print the table."""
    data = Data(
        arguments.data,
        arguments.modalities,
        arguments.image_size,
        query_cameras=arguments.query_cameras,
        ranges=arguments.ranges,
    )
    dataset = load_split(data, "test")
    items = dataset.items
    samples = [dataset[index] for index in range(len(dataset))]
    images = torch.stack([sample.images for sample in samples])
    masks = torch.stack([sample.masks for sample in samples if sample.masks is not None])[:, :, None]
    features = {
        "chance": torch.randn(len(items), 64, generator=torch.Generator().manual_seed(arguments.seed)),
        "mask": masks.float(),
        # The mask is grown, so that no edge of the figure is left in the background, despite parallax.
        "background": images * ~dilate(masks, 5),
        "figure": images * masks,
        "pixels": images,
    }
    metrics = score(
        {name: _normalised(value) for name, value in features.items()},
        items,
        protocol_for(items, data),
    )
    print(table(metrics))
    return metrics


def _normalised(features: Tensor) -> Tensor:
    """Reduce images and subtract their mean over the split, because raw pixels compare best when blurred."""
    if features.ndim == 5:
        features = F.adaptive_avg_pool2d(features.flatten(0, 1), 16).unflatten(0, features.shape[:2])
    flat = features.flatten(1)
    return F.normalize(flat - flat.mean(dim=0), dim=1)


if __name__ == "__main__":
    command.run(main, Arguments, __doc__, prog="python -m examples.prepare.trivial_baselines")
