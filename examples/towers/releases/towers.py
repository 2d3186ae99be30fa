"""Image towers of released files: CLIP's vision transformer and ViT, under the names of open_clip and timm.

The research codes normalise images by mean and deviation 0.5, whatever the tower was pretrained with. Our towers keep
their own mean and deviation, so the difference is moved into the first layer, which is exact.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from examples.towers.releases.tensors import Release, State, TowerPart

RELEASED_MEAN = RELEASED_STD = 0.5
# Factors of the camera embeddings in the released configurations.
SCALES = {"open_clip": 1.0, "timm": 3.0}


def take_tower(release: Release, base: str, cameras: str | None = None) -> TowerPart:
    """Take the image tower under the prefix `base`.

    Args:
        release: tensors of the file.
        base: prefix of the tower's names, with the dot.
        cameras: name of the camera embeddings outside a CLIP tower; a ViT includes its embeddings.

    Raises:
        ValueError: when the file has no tower of a known kind.
    """
    if release.has(f"{base}conv1.weight"):
        found = release.take(cameras).flatten(1) if cameras is not None and release.has(cameras) else None
        return TowerPart("open_clip", release.part(base), found, SCALES["open_clip"])
    if release.has(f"{base}patch_embed.proj.weight"):
        release.leave(f"{base}fc\\.", "classifier of ImageNet, which the method does not use")
        state = release.part(base)
        found = state.pop("sie_embed", None)
        return TowerPart("timm", state, None if found is None else found.flatten(1), SCALES["timm"])
    raise ValueError(
        f"{release.where} must hold an image tower under {base!r}: CLIP's vision transformer, with {base}conv1.weight, "
        f"or a ViT, with {base}patch_embed.proj.weight. Towers of other kinds, such as T2T-ViT, are not supported"
    )


def tower_settings(tower: TowerPart) -> dict[str, Any]:
    """Infer the settings of a tower from its file."""
    everywhere = tower.library == "timm"  # added to all tokens; CLIP adds them to the class token
    settings = {"backbone": tower.library, "projected": tower.library == "open_clip"}
    return {
        **settings,
        "camera_embedding": tower.cameras is not None,
        "camera_tokens": "all" if everywhere else "class",
    }


def tower_state(tower: TowerPart, backbone: Any, where: object) -> State:
    """Convert a released tower to the state of a `PretrainedBackbone`.

    Args:
        tower: released tower.
        backbone: tower to fill.
        where: name of the file, for messages.

    Raises:
        ValueError: when the file has positions for another number of patches.
    """
    state = dict(tower.tensors)
    positions = "positional_embedding" if tower.library == "open_clip" else "pos_embed"
    patches, (rows, columns) = state[positions].shape[-2] - 1, backbone.grid
    if patches != rows * columns:
        height, width = backbone.tokens.image_size
        raise ValueError(
            f"{where} must hold positions of {rows} x {columns} patches, for images of {height} x {width}; it has "
            f"{patches}. Choose the data set it was trained on; patches that overlap are not supported"
        )
    mean, std = (getattr(backbone, name).flatten() for name in ("mean", "std"))
    found = _for_images_of(state, positions, mean, std)
    found = {f"tokens.tower.model.{name}": value for name, value in found.items()}
    if backbone.tokens.camera_embedding is not None and tower.cameras is not None:
        cameras, wanted = camera_embeddings(tower), backbone.tokens.num_cameras
        known = len(cameras) == wanted
        found["tokens.camera_embedding"] = cameras if known else cameras.mean(dim=0).expand(wanted, -1)
    return found


def camera_embeddings(tower: TowerPart) -> Tensor:
    """Return camera embeddings that have the released effect in the place where `TokenBackbone` adds them.

    A released CLIP tower adds the embedding to the class token before its first norm, `TokenBackbone` after this norm.
    The input of the norm depends only on the camera, so the difference of the outputs is the embedding needed.
    """
    assert tower.cameras is not None
    added = tower.scale * tower.cameras.double()
    if tower.library == "timm":
        return added.float()
    state = {name: value.double() for name, value in tower.tensors.items() if not name.startswith("transformer.")}
    token = state["class_embedding"] + state["positional_embedding"][0]

    def norm(tokens: Tensor) -> Tensor:
        return F.layer_norm(tokens, token.shape, state["ln_pre.weight"], state["ln_pre.bias"])

    return (norm(token + added) - norm(token)).float()


def _for_images_of(state: State, positions: str, mean: Tensor, std: Tensor) -> State:
    """Convert a tower trained with mean and deviation 0.5 to another mean and deviation."""
    if (mean == RELEASED_MEAN).all() and (std == RELEASED_STD).all():
        return state
    name = "conv1.weight" if "conv1.weight" in state else "patch_embed.proj.weight"
    weight = state[name].double()
    scaled = weight * (std.double() / RELEASED_STD)[:, None, None]
    constant = torch.einsum("oikl,i->o", weight, (mean.double() - RELEASED_MEAN) / RELEASED_STD)
    bias = name.replace("weight", "bias")
    moved = state.get(bias, torch.zeros(())) + constant
    if bias in state:
        return {**state, name: scaled.float(), bias: moved.float()}
    # The layer has no bias: the constant is added to the positions of all patches, not to the class token.
    shifted = state[positions].double().clone()
    shifted[..., 1:, :] += moved
    return {**state, name: scaled.float(), positions: shifted.float()}
