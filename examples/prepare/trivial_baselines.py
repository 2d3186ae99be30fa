"""Retrieval without any training: what chance, the mask, the background and raw pixels are worth on a test split.

`python -m examples.prepare.trivial_baselines --data DIR --modalities RGB NI TI`. A result means something above these
levels only.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from examples import cli as command
from examples.stmi.evaluate import score
from examples.stmi.report import table
from stmi_layers import ReIDMetrics
from stmi_layers.training.dataset import MultiModalDataset, read_split
from stmi_layers.training.protocol import protocol_for
from stmi_layers.training.transforms import dilate


@dataclass(frozen=True)
class Arguments:
    data: Path
    """Folder set with masks."""
    modalities: tuple[str, ...] = ("RGB", "NI", "TI")
    """Folders to read."""
    query_cameras: tuple[int, ...] = ()
    """Cameras that query the others; without it every image is both query and gallery."""
    image_size: tuple[int, int] = (64, 64)
    """Height and width the images are resized to."""
    seed: int = 0
    """Of the random features."""


def main(arguments: Arguments) -> dict[str, ReIDMetrics]:
    items = read_split(arguments.data, "test", arguments.modalities, missing_caption="ignore")
    dataset = MultiModalDataset(items, arguments.image_size)
    samples = [dataset[index] for index in range(len(dataset))]
    images = torch.stack([sample.images for sample in samples])
    masks = torch.stack([sample.masks for sample in samples if sample.masks is not None])[:, :, None]
    features = {
        "chance": torch.randn(len(items), 64, generator=torch.Generator().manual_seed(arguments.seed)),
        "mask": masks.float(),
        # Grown, so that an edge or a parallax between the bands leaves nothing of the figure in the background.
        "background": images * ~dilate(masks, 5),
        "figure": images * masks,
        "pixels": images,
    }
    metrics = score(
        {name: _normalised(value) for name, value in features.items()},
        items,
        protocol_for(items, arguments.query_cameras),
    )
    print(table(metrics))
    return metrics


def _normalised(features: Tensor) -> Tensor:
    """Small copies of the images, around their mean over the split: raw pixels compare best blurred."""
    if features.ndim == 5:
        features = F.adaptive_avg_pool2d(features.flatten(0, 1), 16).unflatten(0, features.shape[:2])
    flat = features.flatten(1)
    return F.normalize(flat - flat.mean(dim=0), dim=1)


if __name__ == "__main__":
    command.run(main, Arguments, __doc__)
