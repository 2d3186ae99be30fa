"""From settings to modules: the tokenizer of the captions and the model."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from examples.stmi.model import STMI, Backbone, build_stmi
from examples.stmi.settings import Settings
from examples.towers.clip_text import ClipCaptionEncoder, ClipVocabulary
from examples.towers.cnn import ConvolutionalBackbone
from examples.towers.pretrained import ClipTowers, PretrainedBackbone, build_clip, build_timm
from examples.towers.text import CaptionEncoder, Tokenizer, Vocabulary
from examples.towers.vit import VisionTransformer
from stmi_layers.backbones import TokenBackbone, modulate


def build_tokenizer(settings: Settings, captions: Sequence[str]) -> Tokenizer | None:
    """What turns captions into token ids, made of the `captions` of the training; None for a run without captions."""
    if settings.captions == "off":
        return None
    return _clip_vocabulary(settings) if settings.text_encoder == "clip" else Vocabulary.from_captions(captions)


def restore_tokenizer(settings: Settings, words: Sequence[str] | None) -> Tokenizer | None:
    """The tokenizer of a run, from the `words` that its checkpoint keeps."""
    if words is None:
        return None
    return _clip_vocabulary(settings) if settings.text_encoder == "clip" else Vocabulary(words)


def _clip_vocabulary(settings: Settings) -> ClipVocabulary:
    return ClipVocabulary(settings.architecture, overflow=settings.caption_overflow)


def build_model(settings: Settings, tokenizer: Tokenizer | None) -> STMI:
    """The model that `settings` describe, with random weights; `tokenizer` is None when there are no captions."""
    clip = None
    if settings.backbone == "open_clip" or isinstance(tokenizer, ClipVocabulary):
        clip = build_clip(settings.architecture)
    backbone = _build_backbone(settings, clip)
    return build_stmi(
        backbone,
        len(settings.modalities),
        reallocation=settings.reallocation,
        fusion=settings.fusion,
        num_tokens=settings.num_tokens,
        num_heads=settings.num_heads,
        threshold=settings.threshold,
        similarity=settings.similarity,
        text_encoder=_build_text_encoder(settings, tokenizer, clip, backbone.dim),
    )


def _build_text_encoder(
    settings: Settings, tokenizer: Tokenizer | None, clip: ClipTowers | None, dim: int
) -> nn.Module | None:
    if isinstance(tokenizer, Vocabulary):
        return CaptionEncoder(len(tokenizer), tokenizer.length, dim, num_heads=settings.num_heads)
    if isinstance(tokenizer, ClipVocabulary) and clip is not None:
        return ClipCaptionEncoder(clip.text, tokenizer.length, clip.width, dim, project=settings.text_projection)
    return None


def _build_backbone(settings: Settings, clip: ClipTowers | None) -> Backbone:
    if settings.camera_embedding and settings.backbone in ("cnn", "vit"):
        raise ValueError(
            "camera_embedding needs --backbone open_clip or timm, whose class token it is added to; "
            f"received --backbone {settings.backbone}"
        )
    if settings.backbone == "cnn":
        return ConvolutionalBackbone(settings.image_size, dim=settings.dim)
    if settings.backbone == "open_clip" and clip is not None:
        return _build_pretrained(settings, clip.image, projected=settings.projected)
    if settings.backbone == "timm":
        return _build_pretrained(settings, build_timm(settings.architecture), projected=False)
    return VisionTransformer(
        settings.image_size,
        patch_size=settings.patch_size,
        dim=settings.dim,
        depth=settings.depth,
        num_heads=settings.num_heads,
        stem_width=settings.stem_width,
        stem_depth=settings.stem_depth,
        strength=settings.strength,
        foreground_threshold=settings.foreground_threshold,
        per_head=settings.per_head,
        shared_strengths=settings.shared_strengths,
        modulated_blocks=settings.modulated_blocks,
        perturbation=settings.perturbation,
    )


def _build_pretrained(settings: Settings, tower: Any, *, projected: bool) -> PretrainedBackbone:
    try:
        modulate(
            tower,
            alpha=settings.strength,
            beta=settings.strength,
            layers=settings.modulated_blocks,
            share="model" if settings.shared_strengths else "head" if settings.per_head else "layer",
            perturbation=settings.perturbation,
        )
    except TypeError as error:  # whose advice is for those who write their own model
        others = "one of timm.list_models('vit*')" if settings.backbone == "timm" else "'ViT-B-16-quickgelu'"
        raise ValueError(
            f"SFM does not know the attention of --backbone {settings.backbone} --architecture "
            f"{settings.architecture}, a {type(tower).__name__}; choose another --architecture, such as {others}"
        ) from error
    tower.set_grad_checkpointing(settings.checkpointing)
    size, threshold = settings.image_size, settings.foreground_threshold
    cameras = settings.camera_embedding
    tokens = TokenBackbone(
        tower, projected=projected, image_size=size, threshold=threshold, num_cameras=len(cameras) or None
    )
    return PretrainedBackbone(tokens, cameras=cameras)
