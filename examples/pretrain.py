"""Pretrain a small tower on images without identities: `python -m examples.pretrain --data DIR --out runs/NAME`.

Masked image modelling: half of the patches of an image are painted grey, and a linear layer predicts their pixels from
their tokens and the global token. This is SimMIM, <https://arxiv.org/abs/2111.09886>, plus the global token, which
retrieval needs. Each modality of an item is a separate image. Only training splits are read, without identities, masks
and captions.

To start from the pretrained tower, pass the same flags of the tower and the file:
`python -m examples.train METHOD --weights runs/NAME/tower.safetensors`.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import tyro
from einops import rearrange
from torch import Tensor, nn

from examples import cli
from examples.towers.small import save_small_tower
from examples.towers.tower import Tower, build_tower
from stmi_layers.training import Data, Facts, load_split
from stmi_layers.training.optimisation import rate
from stmi_layers.training.schedule import check_not_negative
from stmi_layers.training.transforms import GREY

FILE = "tower.safetensors"
WARMUP = 0.1  # share of the steps in which the learning rate rises


@dataclass(frozen=True)
class Arguments:
    """Masked image modelling on the training images of one or several sets."""

    data: tuple[Path, ...]
    """Folders of the sets."""
    out: Path
    """Folder to write tower.safetensors to."""
    modalities: tuple[str, ...] = ("RGB", "NI")
    """Modalities to read; every set must have all of them."""
    image_size: tuple[int, int] = (48, 48)
    """Height and width in pixels that all images are resized to."""
    masked: float = 0.5
    """Share of the patches that is painted grey, between 0 and 1."""
    epochs: int = 12
    """Passes over all images."""
    batch_size: int = 96
    """Number of images per step, at least 2."""
    learning_rate: float = 2e-3
    """Highest learning rate; the rate rises for a tenth of the training, then falls along a cosine."""
    validation: float = 0.0
    """Share of the training identities to leave out, the same that `examples.train --validation` holds out."""
    seed: int = 0
    """Seed of weights, order of images, masked patches and flips."""
    threads: int = 0
    """Number of CPU threads; 0 leaves the choice to torch."""
    tower: tyro.conf.OmitArgPrefixes[Tower] = field(default_factory=Tower)

    def __post_init__(self) -> None:
        check_not_negative("learning_rate", self.learning_rate)
        if not 0 < self.masked < 1:
            raise ValueError(f"masked must lie between 0 and 1; received {self.masked}")
        if self.tower.backbone not in ("vit", "cnn") or self.tower.weights is not None:
            raise ValueError("tower must be small, --backbone vit or cnn, without --weights")
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(
                f"epochs must be positive and batch_size at least 2; received {self.epochs}, {self.batch_size}"
            )


class MaskedModel(nn.Module):
    """A tower, and a linear layer from a token and the global token to the pixels of a patch."""

    def __init__(self, tower: Any, image_size: tuple[int, int]) -> None:
        super().__init__()
        self.tower, (rows, columns) = tower, tower.grid
        self.patch = (image_size[0] // rows, image_size[1] // columns)
        self.head = nn.Linear(2 * tower.dim, 3 * self.patch[0] * self.patch[1])

    def forward(self, images: Tensor, masked: Tensor) -> Tensor:
        """Return the mean absolute error on masked patches, (batch patches), of images (batch 3 height width)."""
        hidden = self.pixels_of(masked[:, :, None].expand(-1, -1, self.head.out_features))
        tokens, whole = self.tower(torch.where(hidden, GREY, images)[:, None])  # (b 1 n d), (b 1 d)
        both = torch.cat([tokens[:, 0], whole.expand_as(tokens[:, 0])], dim=-1)  # (b n 2d)
        return (self.pixels_of(self.head(both)) - images)[hidden].abs().mean()

    def pixels_of(self, patches: Tensor) -> Tensor:
        """Arrange patches (batch patches pixels) into images."""
        (rows, columns), (height, width) = self.tower.grid, self.patch
        return rearrange(patches, "b (r c) (k h w) -> b k (r h) (c w)", r=rows, c=columns, h=height, w=width, k=3)


def read_images(arguments: Arguments) -> Tensor:
    """Read all training images, (images 3 height width) in [0, 1]."""
    images: list[Tensor] = []
    for root in arguments.data:
        data = Data(
            root,
            modalities=arguments.modalities,
            image_size=arguments.image_size,
            masks="none",
            validation=arguments.validation,
        )
        split = load_split(data, "train")
        images += [split[index].images for index in range(len(split))]
    return torch.cat(images)


def batches(images: Tensor, size: int, masked: float, patches: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield images in random order, half of them mirrored, and the patches to mask, as many in every image."""
    count = max(1, round(masked * patches))
    for chosen in torch.randperm(len(images)).split(size):
        if len(chosen) < 2:  # no batch statistic
            continue
        batch = images[chosen]
        mirrored = torch.rand(len(batch), 1, 1, 1) < 0.5
        drawn = torch.rand(len(batch), patches).argsort(dim=1) < count
        yield torch.where(mirrored, batch.flip(3), batch), drawn


def pretrain(arguments: Arguments, images: Tensor) -> tuple[MaskedModel, list[float]]:
    """Train a model; return it and the mean loss of every epoch."""
    torch.manual_seed(arguments.seed)
    # A small tower does not depend on identities or cameras.
    tower = build_tower(arguments.tower, Facts(arguments.modalities, arguments.image_size, num_identities=2))
    model = MaskedModel(tower, arguments.image_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.05)
    steps, done, history = arguments.epochs * -(-len(images) // arguments.batch_size), 0, []
    for _ in range(arguments.epochs):
        losses = []
        for batch, masked in batches(images, arguments.batch_size, arguments.masked, tower.grid[0] * tower.grid[1]):
            done += 1
            optimizer.param_groups[0]["lr"] = arguments.learning_rate * rate(done / steps, WARMUP)
            loss = model(batch, masked)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        history.append(sum(losses) / len(losses))
    return model, history


def guess(images: Tensor) -> float:
    """Return the mean absolute error of the mean colour of each image, as a baseline."""
    return (images - images.mean(dim=(2, 3), keepdim=True)).abs().mean().item()


def main(arguments: Arguments) -> list[float]:
    """Pretrain, write tower.safetensors, and print the errors."""
    path = arguments.out / FILE
    if path.exists():
        raise FileExistsError(f"{path} exists already: choose another --out")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    images = read_images(arguments)
    began = time.process_time()
    model, history = pretrain(arguments, images)
    minutes = (time.process_time() - began) / 60
    save_small_tower(model.tower, path)
    print(f"{len(images)} images, {arguments.epochs} epochs, {minutes:.2f} CPU minutes")
    print(f"error of a masked pixel: {history[0]:.4f} in the first epoch, {history[-1]:.4f} in the last epoch")
    print(f"error of the mean colour of the image: {guess(images):.4f}", path, sep="\n")
    return history


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.pretrain")
