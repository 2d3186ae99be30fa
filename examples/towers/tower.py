"""Image tower of a method: its settings, and the module built from them."""

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
    """Protocol of an image tower, which is an `nn.Module` besides: patch tokens and a global token per modality.

    Attributes:
        dim: width of all tokens.
        grid: rows and columns of patches.
    """

    dim: int
    grid: tuple[int, int]

    def __call__(
        self, images: Tensor, masks: Tensor | None = None, cameras: Tensor | None = None, /
    ) -> tuple[Tensor, Tensor]:
        """Tokens (batch modalities patches dim) and (batch modalities dim) of images in [0, 1]; it normalises them."""
        ...


@dataclass(frozen=True)
class Tower:
    """Image tower, and SFM in it."""

    backbone: Literal["vit", "cnn", "open_clip", "timm"] = "vit"
    """Kind of tower: a small vision transformer, a small convolutional network that no mask steers, or the
    `architecture` of open_clip or timm."""
    architecture: str = "ViT-B-16-quickgelu"
    """Name of the model of open_clip or timm, the "-quickgelu" one for OpenAI's weights."""
    weights: Path | None = None
    """Pretrained weights: of `architecture`, OpenAI's archive or a safetensors or torch file of open_clip or timm; of a
    small tower, what `examples.pretrain` wrote."""
    weights_grid: tuple[int, int] | None = None
    """Rows and columns of patches of the images those weights were trained with; by default a square."""
    random_weights: bool = False
    """Start `architecture` from random weights, to try a run. Without it, a run without `weights` is an error."""
    trust_pickle: bool = False
    """Read a torch file that holds more than tensors, which can run any code in it."""
    projected: bool = True
    """CLIP's projection on every token: 512 wide for ViT-B/16, where the tokens themselves have 768."""
    camera_embedding: bool = False
    """Learn an embedding per camera of the training split, or per viewpoint where cameras are not numbered, added to
    the class token of a pretrained tower; any other camera gets their mean."""
    camera_tokens: Literal["class", "all"] = "class"
    """Tokens that get the embedding of the camera: the class token, or the patches too."""
    checkpointing: bool = False
    """Recompute the blocks of a pretrained tower in the backward pass: less memory for more time."""
    patch_size: int = 8
    """Side of a patch of the small vision transformer in pixels; a power of two."""
    dim: int = 128
    """Width of the tokens of the small towers; a pretrained tower brings its own."""
    depth: int = 2
    """Blocks of the small vision transformer."""
    tower_heads: int = 4
    """Attention heads of the small vision transformer."""
    stem_width: int = 64
    """Channels after the first convolution of the stem of the small vision transformer."""
    stem_depth: int = 1
    """Convolutions of that stem at each of its scales."""
    modulated_blocks: Placement = "all"
    """Blocks in which SFM acts where there are masks: all, the early half, the late half, or none; the attention of
    the other blocks is plain."""
    strength: float = 0.5
    """Initial alpha and beta of SFM. 0.1 suits pretrained towers, 0.5 training from scratch."""
    foreground_threshold: float = 0.5
    """Share of a patch that the mask has to cover for it to count as foreground; 1 keeps mixed patches out."""
    per_head: bool = False
    """Learn alpha and beta per head instead of per block."""
    shared_strengths: bool = False
    """Learn one alpha and beta for all blocks together."""
    perturbation: float = 0.0
    """Probability, in training, that a background token counts as foreground."""

    def __post_init__(self) -> None:
        if self.per_head and self.shared_strengths:
            raise ValueError("per_head and shared_strengths exclude each other; received both")


def build_tower(tower: Tower, facts: Facts) -> Any:
    """The `Backbone` that the settings describe, with random weights.

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
        raise ValueError("camera_embedding needs a set that numbers cameras or viewpoints; received one without")
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
    except TypeError as error:  # whose advice is for those who write their own model
        others = "one of timm.list_models('vit*')" if tower.backbone == "timm" else "'ViT-B-16-quickgelu'"
        raise ValueError(
            f"SFM does not know the attention of --backbone {tower.backbone} --architecture {tower.architecture}, a "
            f"{type(model).__name__}; choose another --architecture, such as {others}, or --modulated-blocks none"
        ) from error


def tower_tokens(
    backbone: Any, batch: Batch, extra: Tensor | None = None, *, run_absent: bool = False
) -> tuple[Tensor, Tensor]:
    """Tokens of all modalities: patches (batch modalities patches dim) and globals (batch modalities dim), 0 if absent.

    In training an absent image is not run at all, so that it enters no batch statistic. In evaluation all images run,
    because choosing among them would make the host wait and the shapes depend on the data.

    Args:
        backbone: a `Backbone`.
        batch: a batch.
        extra: further tokens (batch modalities tokens width) for a tower that takes them, such as captions; they come
            out behind the patches.
        run_absent: run absent images in training as well, for a tower without batch statistics that tells the modality
            of an image by its place.
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
    """The part of a tower that is pretrained, without embeddings of cameras, which are new; all of a small tower."""
    return backbone.tokens.get_submodule("tower") if isinstance(backbone, PretrainedBackbone) else backbone


def watch_strengths(backbone: nn.Module) -> dict[str, float]:
    """Alpha and beta of every block with SFM, the mean over heads, under "alpha/block_0" and so on."""
    layers = [module for module in backbone.modules() if isinstance(getattr(module, "alpha", None), nn.Parameter)]
    return {
        f"{name}/block_{index}": layer.get_parameter(name).mean().item()
        for name in ("alpha", "beta")
        for index, layer in enumerate(layers)
    }


def check_weights(tower: Tower) -> None:
    """Refuse weights that cannot be read, before anything is built.

    Raises:
        ValueError: when weights and random weights are both asked for.
        FileNotFoundError: when there is no file of weights.
    """
    if tower.weights is not None and tower.random_weights:
        raise ValueError(f"choose one of --weights and --random-weights; received both, --weights {tower.weights}")
    if tower.weights is not None and not tower.weights.is_file():
        raise FileNotFoundError(f"no file at {tower.weights} (--weights)")


def fill_towers(tower: Tower, model: nn.Module) -> str:
    """Fill the pretrained towers of a model from the file, and say what became of it; "" for a model without any.

    Raises:
        ValueError: when there is no file, and random weights are not asked for, or it does not fit.
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
            "--random-weights, which is good for trying a run out and for no result"
        )
    if not towers:
        return ""
    start = "starts" if len(towers) == 1 else "start"
    return f"{' and '.join(towers)} of {tower.architecture} {start} from random weights (--random-weights)"
