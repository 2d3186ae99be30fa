"""Pretrained towers under STMI: an image tower of open_clip or timm with SFM in its blocks, and CLIP's text tower."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from examples.towers.clip_text import ClipCaptionEncoder, import_library
from stmi_layers.backbones import LoadReport, TokenBackbone, load_weights


class ClipTowers(NamedTuple):
    """The image tower, the rest of the model, which encodes texts, and the width of their common space."""

    image: nn.Module
    text: nn.Module
    width: int


def build_clip(architecture: str) -> ClipTowers:
    """A CLIP model of open_clip with random weights.

    Raises:
        ImportError: when open_clip is not installed.
        ValueError: when open_clip has no such model.
    """
    open_clip = import_library("open_clip", "clip")
    config = open_clip.get_model_config(architecture)
    if config is None:
        raise ValueError(
            f"architecture must be a model of open_clip, such as 'ViT-B-16-quickgelu'; received {architecture!r}. "
            "open_clip.list_models() lists them"
        )
    with _without_logging():  # of a warning that the weights are random, which they do not stay
        clip = open_clip.create_model(architecture, pretrained=None)
    image = clip.visual
    del clip.visual
    return ClipTowers(image, clip, config["embed_dim"])


def build_timm(architecture: str) -> nn.Module:
    """A model of timm without classifier, with random weights.

    Raises:
        ImportError: when timm is not installed.
        ValueError: when timm has no such model.
    """
    timm = import_library("timm", "timm")
    if not timm.is_model(architecture):
        raise ValueError(
            f"architecture must be a model of timm, such as 'vit_base_patch16_clip_224'; received {architecture!r}. "
            "timm.list_models('*vit*') lists some"
        )
    return timm.create_model(architecture, pretrained=False, num_classes=0)


class PretrainedBackbone(nn.Module):
    """A `TokenBackbone` for images as the data pipeline makes them, of values from -1 to 1.

    They are brought to the mean and deviation of the tower here, so that the grey which erases a part of an image
    means the same for every backbone.

    Args:
        tokens: of a modulated tower.
        cameras: the number of the camera of each embedding, when `tokens` has embeddings of cameras.
    """

    mean: Tensor
    std: Tensor
    cameras: Tensor

    def __init__(self, tokens: TokenBackbone, *, cameras: Sequence[int] = ()) -> None:
        super().__init__()
        self.tokens, self.dim, self.grid, self.reads_cameras = tokens, tokens.dim, tokens.grid, bool(cameras)
        self.register_buffer("cameras", torch.tensor(cameras, dtype=torch.int64), persistent=False)
        for name, values in (("mean", tokens.mean), ("std", tokens.std)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(
        self, images: Tensor, masks: Tensor | None = None, cameras: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Patch tokens (batch modalities patches dim) and global tokens (batch modalities dim).

        A camera without embedding, or no `cameras` at all, gets the mean of the embeddings.
        """
        if cameras is not None:
            known = cameras[:, None] == self.cameras
            cameras = torch.where(known.any(dim=1), known.int().argmax(dim=1), -1)
        return self.tokens(((images + 1) / 2 - self.mean) / self.std, masks, cameras)


def load_pretrained(
    model: nn.Module, path: Path, *, old_grid: tuple[int, int] | None = None, trust_pickle: bool = False
) -> dict[str, LoadReport]:
    """Fill the pretrained towers of an STMI model from one file.

    Args:
        model: an `STMI`, whose backbone or text encoder is pretrained.
        path: an OpenAI archive, or a file of open_clip or timm.
        old_grid: rows and columns of patches of the images the file was trained with; a square by default.
        trust_pickle: read a torch file that holds more than tensors, which can run any code.

    Returns:
        What was loaded, by the name of the tower.

    Raises:
        ValueError: when the model has no pretrained tower, or the file does not fit one of them.
    """
    towers = pretrained_towers(model)
    if not towers:
        raise ValueError("weights need a backbone of open_clip or timm, or text_encoder='clip'; the model has neither")
    options: dict[str, Any] = {"old_grid": old_grid, "trust_pickle": trust_pickle}
    return {name: load_weights(tower, path, **options) for name, tower in towers.items()}


def pretrained_towers(model: nn.Module) -> dict[str, nn.Module]:
    """Those parts of a model that have pretrained weights, by what they are called in messages."""
    towers: dict[str, nn.Module] = {}
    for module in model.modules():
        if isinstance(module, PretrainedBackbone):
            towers["image tower"] = module.tokens.get_submodule("tower.model")
        elif isinstance(module, ClipCaptionEncoder):
            towers["text tower"] = module.tower
    return towers


@contextmanager
def _without_logging() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
