"""Models of open_clip and timm by name, with random weights."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import nn

from examples.optional import import_library


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


@contextmanager
def _without_logging() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
