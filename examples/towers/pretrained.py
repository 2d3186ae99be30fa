"""Pretrained towers: an image tower of open_clip or timm, and loading of image and text towers from a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from examples.towers.clip_text import ClipCaptionEncoder
from stmi_layers.backbones import LoadReport, TokenBackbone, load_weights


class PretrainedBackbone(nn.Module):
    """A `TokenBackbone` for images in [0, 1], which it normalises by the mean and deviation of its tower.

    Args:
        tokens: `TokenBackbone` of a tower, with or without SFM.
        cameras: number of the camera of each embedding, if `tokens` has camera embeddings.
    """

    mean: Tensor
    std: Tensor
    cameras: Tensor

    def __init__(self, tokens: TokenBackbone, *, cameras: Sequence[int] = ()) -> None:
        super().__init__()
        self.tokens, self.dim, self.width, self.grid = tokens, tokens.dim, tokens.tower.width, tokens.grid
        self.modulated = any(hasattr(module, "alpha") for module in tokens.modules())
        self.register_buffer("cameras", torch.tensor(cameras, dtype=torch.int64), persistent=False)
        for name, values in (("mean", tokens.mean), ("std", tokens.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(
        self,
        images: Tensor,
        masks: Tensor | None = None,
        cameras: Tensor | None = None,
        extra: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return patch tokens (batch modalities patches dim) and global tokens (batch modalities dim).

        A tower without SFM ignores `masks`. A camera without embedding gets the mean of the embeddings, as do all
        images if `cameras` is None. Tokens of `extra`, `width` wide, enter and leave after the patches.
        """
        index = None
        if cameras is not None and len(self.cameras):
            known = cameras[:, None] == self.cameras  # (batch embeddings)
            index = torch.where(known.any(dim=1), known.int().argmax(dim=1), -1)
        return self.tokens((images - self.mean) / self.std, masks if self.modulated else None, index, extra)


def load_pretrained(
    model: nn.Module, path: Path, *, old_grid: tuple[int, int] | None = None, trust_pickle: bool = False
) -> dict[str, LoadReport]:
    """Fill the pretrained towers of a model from one file.

    Args:
        model: a model whose image tower or text encoder is pretrained.
        path: an OpenAI archive, or a file of open_clip or timm.
        old_grid: rows and columns of patches that the file was trained with; a square by default.
        trust_pickle: read a torch file that holds more than tensors, which can run any code.

    Returns:
        Report on the loading, by name of the tower.

    Raises:
        ValueError: when the model has no pretrained tower, or the file does not fit one of them.
    """
    towers = pretrained_towers(model)
    if not towers:
        raise ValueError("weights need a pretrained tower, of images or captions; the model has neither")
    options: dict[str, Any] = {"old_grid": old_grid, "trust_pickle": trust_pickle}
    return {name: load_weights(tower, path, **options) for name, tower in towers.items()}


def pretrained_towers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the parts of a model with pretrained weights, by their names in messages."""
    images = [module for module in model.modules() if isinstance(module, PretrainedBackbone)]
    texts = [module.tower for module in model.modules() if isinstance(module, ClipCaptionEncoder)]
    names = ["image tower"] if len(images) == 1 else [f"image tower {number}" for number in range(1, len(images) + 1)]
    towers = {name: image.tokens.get_submodule("tower.model") for name, image in zip(names, images, strict=True)}
    return towers | dict(zip(["text tower"], texts, strict=False))
