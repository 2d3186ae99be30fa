"""Image tower of a method: its settings, and its building from the settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from examples.towers.architectures import build_clip, build_timm
from examples.towers.cnn import ConvolutionalBackbone
from examples.towers.pretrained import PretrainedBackbone, load_pretrained, pretrained_towers
from examples.towers.small import fill_small_towers
from examples.towers.vit import Placement, VisionTransformer
from stmi_layers.backbones import TokenBackbone, modulate
from stmi_layers.training.contract import Batch, Facts


class Backbone(Protocol):
    """Protocol of an image tower, which is also an `nn.Module`: patch tokens and a global token per modality.

    Attributes:
        dim: width of all tokens.
        grid: rows and columns of patches.
    """

    dim: int
    grid: tuple[int, int]

    def __call__(
        self, images: Tensor, masks: Tensor | None = None, cameras: Tensor | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Normalise images in [0, 1]; return tokens (batch modalities patches dim) and (batch modalities dim)."""
        ...


@dataclass(frozen=True)
class Tower:
    """Image tower, with its SFM."""

    backbone: Literal["vit", "cnn", "open_clip", "timm"] = "vit"
    """Kind of tower: a small vision transformer, a small convolutional network, which ignores masks, or the
    `architecture` of open_clip or timm."""
    architecture: str = "ViT-B-16-quickgelu"
    """Name of the model of open_clip or timm; weights of OpenAI need the name with "-quickgelu"."""
    weights: Path | None = None
    """File of pretrained weights: for `architecture`, OpenAI's archive or a safetensors or torch file of open_clip or
    timm; for a small tower, the file of `examples.pretrain`."""
    weights_grid: tuple[int, int] | None = None
    """Rows and columns of patches of the images that `weights` were trained with; a square by default."""
    random_weights: bool = False
    """Start `architecture` from random weights, to try a run; otherwise a run without `weights` is an error."""
    trust_pickle: bool = False
    """Read a torch file that holds more than tensors; such a file can run any code on your machine."""
    projected: bool = True
    """Apply CLIP's projection to every token: ViT-B/16 then has tokens 512 wide instead of 768."""
    camera_embedding: bool = False
    """Learn an embedding per camera of the training split, or per viewpoint if the set has no camera numbers. It is
    added to the class token of a pretrained tower; unknown cameras get the mean of the embeddings."""
    camera_tokens: Literal["class", "all"] = "class"
    """Tokens that get the camera embedding: the class token, or all tokens."""
    checkpointing: bool = False
    """Recompute the blocks of a pretrained tower in the backward pass, which saves memory and costs time."""
    patch_size: int = 8
    """Side of a patch of the small vision transformer in pixels; a power of two."""
    dim: int = 128
    """Width of the tokens of a small tower; the width of a pretrained tower is fixed."""
    depth: int = 2
    """Number of blocks of the small vision transformer."""
    tower_heads: int = 4
    """Number of attention heads of the small vision transformer."""
    stem_width: int = 64
    """Number of channels after the first convolution of the stem of the small vision transformer."""
    stem_depth: int = 1
    """Number of convolutions of the stem of the small vision transformer at each scale."""
    modulated_blocks: Placement = "all"
    """Blocks in which SFM acts if there are masks: all, the early half, the late half, or none. Other blocks have plain
    attention."""
    strength: float = 0.5
    """Initial alpha and beta of SFM: 0.1 suits pretrained towers, 0.5 suits training from scratch."""
    foreground_threshold: float = 0.5
    """Share of a patch, 0 to 1, that the mask must cover for the patch to be foreground; 1 excludes mixed patches."""
    per_head: bool = False
    """Learn alpha and beta per head instead of per block."""
    shared_strengths: bool = False
    """Learn one alpha and one beta for all blocks together."""
    perturbation: float = 0.0
    """Probability in training that a background token counts as foreground."""

    def __post_init__(self) -> None:
        if self.per_head and self.shared_strengths:
            raise ValueError("per_head and shared_strengths exclude each other; received both")


def build_tower(tower: Tower, facts: Facts) -> Any:
    """Build the `Backbone` of the settings, with random weights.

    Raises:
        ImportError: when the library of `architecture` is not installed.
        ValueError: when the settings do not fit each other or the images.
    """
    if tower.camera_embedding and tower.backbone in ("cnn", "vit"):
        raise ValueError(
            "camera_embedding needs --backbone open_clip or timm, whose class token it is added to; "
            f"received --backbone {tower.backbone}"
        )
    if tower.backbone == "cnn":
        return ConvolutionalBackbone(facts.image_size, dim=tower.dim)
    if tower.backbone == "open_clip":
        return _build_pretrained(tower, facts, build_clip(tower.architecture).image, projected=tower.projected)
    if tower.backbone == "timm":
        return _build_pretrained(tower, facts, build_timm(tower.architecture), projected=False)
    return VisionTransformer(
        facts.image_size,
        patch_size=tower.patch_size,
        dim=tower.dim,
        depth=tower.depth,
        num_heads=tower.tower_heads,
        stem_width=tower.stem_width,
        stem_depth=tower.stem_depth,
        strength=tower.strength,
        foreground_threshold=tower.foreground_threshold,
        per_head=tower.per_head,
        shared_strengths=tower.shared_strengths,
        modulated_blocks=tower.modulated_blocks,
        perturbation=tower.perturbation,
    )


def _build_pretrained(tower: Tower, facts: Facts, model: Any, *, projected: bool) -> PretrainedBackbone:
    if tower.modulated_blocks != "none":
        _modulate(tower, model)
    model.set_grad_checkpointing(tower.checkpointing)
    cameras = (facts.cameras or facts.views) if tower.camera_embedding else ()
    if tower.camera_embedding and not cameras:
        raise ValueError("camera_embedding needs a set that numbers cameras or viewpoints; received a set without")
    tokens = TokenBackbone(
        model,
        projected=projected,
        image_size=facts.image_size,
        threshold=tower.foreground_threshold,
        num_cameras=len(cameras) or None,
        camera_tokens=tower.camera_tokens,
    )
    return PretrainedBackbone(tokens, cameras=cameras)


def _modulate(tower: Tower, model: nn.Module) -> None:
    try:
        modulate(
            model,
            alpha=tower.strength,
            beta=tower.strength,
            layers=tower.modulated_blocks,  # pyright: ignore[reportArgumentType]  never "none"
            share="model" if tower.shared_strengths else "head" if tower.per_head else "layer",
            perturbation=tower.perturbation,
        )
    except TypeError as error:  # its advice is for users who write their own model
        others = "one of timm.list_models('vit*')" if tower.backbone == "timm" else "'ViT-B-16-quickgelu'"
        raise ValueError(
            f"SFM does not know the attention of --backbone {tower.backbone} --architecture {tower.architecture}, a "
            f"{type(model).__name__}; choose another --architecture, such as {others}, or --modulated-blocks none"
        ) from error


def tower_tokens(
    backbone: Any, batch: Batch, extra: Tensor | None = None, *, run_absent: bool = False
) -> tuple[Tensor, Tensor]:
    """Return patches (batch modalities patches dim) and global tokens (batch modalities dim), 0 if absent.

    In training an absent image is not run, so that it enters no batch statistic. In evaluation all images are run,
    because selecting images would make the host wait and make shapes depend on the data.

    Args:
        backbone: a `Backbone`.
        batch: a batch.
        extra: further tokens (batch modalities tokens width), such as captions, for a tower that takes them; they leave
            after the patches.
        run_absent: also run absent images in training, for a tower without batch statistics that knows the modality of
            an image by its position.
    """
    more = () if extra is None else (extra,)
    present, cameras = batch.present, torch.where(batch.cameras < 0, batch.views, batch.cameras)
    if present is None:
        return backbone(batch.images, batch.masks, cameras, *more)
    if run_absent or not backbone.training:
        images = torch.where(present[..., None, None, None], batch.images, 0.0)
        patches, globals_ = backbone(images, batch.masks, cameras, *more)
        return torch.where(present[..., None, None], patches, 0.0), torch.where(present[..., None], globals_, 0.0)
    patches, globals_ = backbone(
        batch.images[present][:, None],  # (there 1 3 height width)
        None if batch.masks is None else batch.masks[present][:, None],
        cameras[:, None].expand_as(present)[present],
        *(tokens[present][:, None] for tokens in more),
    )
    return (
        patches.new_zeros(*present.shape, *patches.shape[2:]).masked_scatter(present[..., None, None], patches),
        globals_.new_zeros(*present.shape, *globals_.shape[2:]).masked_scatter(present[..., None], globals_),
    )


def trunk_of(backbone: Any) -> nn.Module:
    """Return the pretrained part of a tower, without camera embeddings, which are new; a small tower as a whole."""
    return backbone.tokens.get_submodule("tower") if isinstance(backbone, PretrainedBackbone) else backbone


def watch_strengths(backbone: nn.Module) -> dict[str, float]:
    """Return alpha and beta of every block with SFM, as means over heads, under "alpha/block_0" and so on."""
    layers = [module for module in backbone.modules() if isinstance(getattr(module, "alpha", None), nn.Parameter)]
    return {
        f"{name}/block_{index}": layer.get_parameter(name).mean().item()
        for name in ("alpha", "beta")
        for index, layer in enumerate(layers)
    }


def check_weights(tower: Tower) -> None:
    """Refuse weights that cannot be read, before anything is built.

    Raises:
        ValueError: when both weights and random weights are requested.
        FileNotFoundError: when the file of weights does not exist.
    """
    if tower.weights is not None and tower.random_weights:
        raise ValueError(f"choose one of --weights and --random-weights; received both, --weights {tower.weights}")
    if tower.weights is not None and not tower.weights.is_file():
        raise FileNotFoundError(f"no file at {tower.weights} (--weights)")


def fill_towers(tower: Tower, model: nn.Module) -> str:
    """Fill the pretrained towers of a model from the file, and return a report; "" for a model without such towers.

    Raises:
        ValueError: when no file is given and random weights are not requested, or the file does not fit.
    """
    towers = pretrained_towers(model)
    if tower.weights is not None and not towers:
        return fill_small_towers(model, tower.weights)
    if tower.weights is not None:
        reports = load_pretrained(model, tower.weights, old_grid=tower.weights_grid, trust_pickle=tower.trust_pickle)
        return "\n".join(f"{name}: {report}" for name, report in reports.items())
    if towers and not tower.random_weights:
        raise ValueError(
            f"{tower.architecture} needs pretrained weights: give their file by --weights, or ask for random ones by "
            "--random-weights, which only serve to try a run"
        )
    if not towers:
        return ""
    start = "starts" if len(towers) == 1 else "start"
    return f"{' and '.join(towers)} of {tower.architecture} {start} from random weights (--random-weights)"
