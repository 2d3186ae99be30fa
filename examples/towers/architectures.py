"""Models of open_clip and timm by name, with random weights."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import nn

from examples.optional import import_library


class ClipTowers(NamedTuple):
    """Parts of a CLIP model: image tower, the rest, which encodes texts, and the width of their common space."""

    image: nn.Module
    text: nn.Module
    width: int


def build_clip(architecture: str) -> ClipTowers:
    """Build a CLIP model of open_clip with random weights.

    Raises:
        ImportError: when open_clip is not installed.
        ValueError: when open_clip has no such model.
    """
    open_clip = import_library("open_clip", "clip")
    config = clip_config(architecture)
    with _without_logging():  # hides a warning about random weights, which are replaced later
        clip = open_clip.create_model(architecture, pretrained=None)
    image = clip.visual
    del clip.visual
    return ClipTowers(image, clip, config["embed_dim"])


def clip_config(architecture: str) -> dict[str, Any]:
    """Return the sizes of a model of open_clip, from the list in open_clip.

    A name may come from a checkpoint, so names that open_clip would fetch from a hub or read from a folder are refused.

    Raises:
        ImportError: when open_clip is not installed.
        ValueError: when open_clip has no such model, or would download a part of it.
    """
    open_clip = import_library("open_clip", "clip")
    if architecture not in open_clip.list_models():
        raise ValueError(
            f"architecture must be a model of open_clip, such as 'ViT-B-16-quickgelu'; received {architecture!r}. "
            "open_clip.list_models() lists them"
        )
    config = open_clip.get_model_config(architecture)
    if fetched := config.get("text_cfg", {}).get("hf_model_name"):
        raise ValueError(
            f"architecture must be a model of open_clip that is built without downloads; {architecture!r} takes its "
            f"text tower from {fetched!r}. Choose a model with CLIP's own text tower, such as 'ViT-B-16-quickgelu'"
        )
    return config


def build_timm(architecture: str) -> nn.Module:
    """Build a model of timm without classifier, with random weights.

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
