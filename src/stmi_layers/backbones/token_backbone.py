"""One face for the vision transformers of all libraries: images and masks in, patch tokens and a global token out."""

from typing import Any, Literal

import torch
from einops import repeat
from jaxtyping import Int
from torch import Tensor, nn

from stmi_layers._checks import check_choice
from stmi_layers._typing import capturing, typed
from stmi_layers.backbones import tower as towers
from stmi_layers.backbones.adapted import num_modalities
from stmi_layers.backbones.known_models import find_towers, load_family, unknown_model
from stmi_layers.backbones.mixin import Modulated
from stmi_layers.backbones.positions import GRID_NAME, resize_positions
from stmi_layers.backbones.tower import Colour, Extra, Globals, Grid, Images, Masks, Patches, Tower
from stmi_layers.foreground import token_foreground
from stmi_layers.kernels.sides import prepare


class TokenBackbone(nn.Module):
    r"""Patch tokens and a global token from a vision transformer of open_clip, timm or transformers.

    Use it where a method wants tokens and does not care whose they are. It learns what `model` learns, and the camera
    embedding. Images come **normalised**, `(image - mean) / std` with the attributes `mean` and `std`, one number per
    channel, of images in [0, 1]: those the pretrained weights were made with. An image of one channel, near infrared
    or thermal, is repeated to the channels of the model.

    The global token is what the model itself pools: its class token behind the final norm, the mean of its patches, or
    its attention pool, as `model` was built. Patch tokens are behind the final norm as well. Activation checkpointing
    follows the switch of the library (`set_grad_checkpointing`, `activation_checkpointing_enable`), with masks too.

    The size of the images is fixed at construction, where the position embeddings are resized to it. The state dict
    holds the grid of patches as `position_grid`, and loading a state dict of another grid resizes its position
    embeddings from that grid to this one: 16 x 8 into 8 x 16 is resized, not transposed. After a resize call
    this module and not `model` itself; the forward of transformers cannot take images that are not square. Save its
    `state_dict()` too: `save_pretrained` keeps the old size in its configuration.

    Args:
        model: an open_clip `VisionTransformer` or `TimmModel` (`clip.visual`), a timm `VisionTransformer` or `Eva`, or
            a `CLIPVisionModel`, `CLIPVisionModelWithProjection`, `Dinov2Model` or `SiglipVisionModel` of transformers;
            modulated or not. It is kept, not copied.
        projected: apply the projection of CLIP to every token, so that all of them live in the space of the texts.
        image_size: height and width of the images in pixels, multiples of the patch; by default those of `model`.
        threshold: share of a patch's area from which on it is foreground, in (0, 1].
        num_cameras: learn an embedding per camera or view, added to the class token that enters the first block. It
            starts at 0.
        camera_scale: factor of that embedding.
        camera_tokens: "class", or "all" to add it to every token that enters the first block.

    Attributes:
        grid: rows and columns of patches.
        dim: width of the tokens.
        prefix_tokens: class and register tokens, which are not returned among the patches.
        patch_size: height and width of a patch in pixels.
        mean: of each channel, for images in [0, 1].
        std: of each channel, likewise.

    Raises:
        TypeError: when `model` is not known; the message lists what is.
        ImportError: when the library of `model` is too old; the message names the extra to install.
        ValueError: when the patch does not divide `image_size`, `threshold` is outside (0, 1], `projected` is asked of
            a model without projection, or cameras of one without class token.

    Examples:
        >>> from open_clip.transformer import VisionTransformer
        >>> from stmi_layers.backbones import modulate
        >>> visual = VisionTransformer((64, 32), patch_size=16, width=32, layers=2, heads=2, mlp_ratio=4.0)
        >>> backbone = TokenBackbone(modulate(visual))
        >>> images, masks = torch.randn(2, 3, 3, 64, 32), torch.rand(2, 3, 64, 32) > 0.5  # three modalities
        >>> patches, global_tokens = backbone(images, foreground=masks)
        >>> patches.shape, global_tokens.shape
        (torch.Size([2, 3, 8, 32]), torch.Size([2, 3, 32]))
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        projected: bool = False,
        image_size: tuple[int, int] | None = None,
        threshold: float = 0.5,
        num_cameras: int | None = None,
        camera_scale: float = 1.0,
        camera_tokens: Literal["class", "all"] = "class",
    ) -> None:
        super().__init__()
        found = find_towers(model)
        if not found:
            raise unknown_model(model, "TokenBackbone")
        if found != [model]:
            inside = type(found[0]).__name__
            raise TypeError(f"model must be a vision transformer; received {type(model)}: pass the {inside} inside it")
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be above 0 and at most 1; received {threshold}")
        family = load_family(model)
        self.tower: Tower = family.tower(model, projected)
        self._blocks_of = family.blocks
        self.dim, self.prefix_tokens = self.tower.dim, self.tower.prefix_tokens
        self.patch_size, self.projected, self.threshold = self.tower.patch_size, projected, threshold
        self.mean: Colour = self.tower.mean
        self.std: Colour = self.tower.std
        self.grid = self.tower.grid()
        if image_size is not None:
            self._resize(image_size)
        self.image_size = (self.grid[0] * self.patch_size[0], self.grid[1] * self.patch_size[1])
        self.register_buffer(GRID_NAME, self._grid_on(next(self.tower.parameters()).device))
        check_choice("camera_tokens", camera_tokens, ("class", "all"))
        self.num_cameras, self.camera_scale, self.camera_tokens = num_cameras, camera_scale, camera_tokens
        self.camera_embedding = None if num_cameras is None else self._new_cameras(num_cameras)

    @typed
    def forward(
        self,
        images: Images,
        foreground: Masks | None = None,
        cameras: Int[Tensor, " batch"] | None = None,
        extra: Extra | None = None,
    ) -> tuple[Patches, Globals]:
        """Tokens of each image, in one pass for all modalities.

        Args:
            images: normalised, of `image_size`; several modalities of a sample stand side by side.
            foreground: masks in pixels, True or the probability between 0 and 1, at any resolution; without an axis
                for the modalities, one mask holds for all of them. None leaves the model unmodulated.
            cameras: index of the camera or view of each sample. An index outside those trained with gets the mean of
                the embeddings, and so does every sample when None.
            extra: further tokens of each image, `tower.width` wide with their positions added, such as a caption's.
                They enter behind the patches and come out there, they are foreground, and nothing pools them.

        Returns:
            The patch tokens, row by row, and the global token; with an axis for the modalities when `images` has one.

        Raises:
            ValueError: when size, channels or modalities of `images` do not fit, when `foreground` is given to a model
                that is not modulated, or `cameras` to one without camera embedding.
        """
        modalities = images.shape[1] if images.dim() == 5 else 1
        if (prompted := num_modalities(self._blocks_of(self.tower.model)[0])) not in (None, modalities):
            raise ValueError(f"images must have the {prompted} modalities of the prompts; received {modalities}")
        flat = self._fitting(images.flatten(0, 1) if images.dim() == 5 else images)
        if foreground is not None and foreground.dim() > images.dim() - 1:
            received = f"foreground {tuple(foreground.shape)} with images {tuple(images.shape)}"
            raise ValueError(f"foreground must have no axis for modalities when images have none; received {received}")
        mask = None if foreground is None else self._foreground(foreground, modalities)
        if extra is not None:
            extra = extra.flatten(0, 1) if images.dim() == 5 else extra
            mask = None if mask is None else torch.cat([mask, mask.new_ones(extra.shape[:2])], dim=1)
        mask = mask if mask is None or capturing() else prepare(mask)
        patches, pooled = self.tower(flat, mask, self._offset(cameras, images.shape[0], modalities), extra)
        if images.dim() == 4:
            return patches, pooled
        return patches.unflatten(0, (-1, modalities)), pooled.unflatten(0, (-1, modalities))

    def _fitting(self, images: Tensor) -> Tensor:
        channels = self.tower.channels
        if images.shape[-2:] != self.image_size:
            rule = f"images must have the height and width {self.image_size} that TokenBackbone was built for"
            raise ValueError(f"{rule}; received {tuple(images.shape[-2:])}. Build it with image_size=")
        if images.shape[1] not in (1, channels):
            raise ValueError(f"images must have 1 or {channels} channels; received {images.shape[1]}")
        return images.expand(-1, channels, -1, -1)

    def _foreground(self, masks: Tensor, modalities: int) -> Tensor:
        first = self._blocks_of(self.tower.model)[0]  # what modulate adds is in every block
        if not any(isinstance(module, Modulated) for module in first.modules()):
            raise ValueError("foreground needs a modulated model: call modulate(model), or leave foreground out")
        if masks.dim() == 4:
            masks = masks.flatten(0, 1)
        else:
            masks = repeat(masks, "batch height width -> (batch modalities) height width", modalities=modalities)
        return token_foreground(masks, self.grid, threshold=self.threshold, prefix_tokens=self.prefix_tokens)

    def _offset(self, cameras: Tensor | None, batch: int, modalities: int) -> Tensor | None:
        if self.camera_embedding is None:
            if cameras is not None:
                raise ValueError("cameras needs an embedding: build TokenBackbone with num_cameras=")
            return None
        offsets = self.camera_scale * towers.camera_offsets(self.camera_embedding, cameras, batch)
        count = 1 if self.camera_tokens == "class" else self.prefix_tokens + self.grid[0] * self.grid[1]
        return offsets.repeat_interleave(modalities, dim=0)[:, None].expand(-1, count, -1)

    def _grid_on(self, device: torch.device) -> Tensor:
        """Return the grid as the state dict holds it: rows, columns."""
        return torch.tensor(self.grid, device=device)

    def _new_cameras(self, num_cameras: int) -> nn.Parameter:
        if num_cameras < 1:
            raise ValueError(f"num_cameras must be at least 1; received {num_cameras}")
        if not self.tower.class_token:
            raise ValueError("num_cameras needs a model with a class token, which takes the camera embedding")
        like = next(self.tower.parameters())
        return nn.Parameter(torch.zeros(num_cameras, self.tower.width, device=like.device, dtype=like.dtype))

    def _resize(self, image_size: tuple[int, int]) -> None:
        """Bring the model to another size of images, its position embeddings interpolated."""
        old, self.grid = self.grid, towers.new_grid(image_size, self.patch_size)
        if self.tower.positions is None or old == self.grid:
            self.tower.set_grid(self.grid)
            return
        before = self.tower.get_parameter(self.tower.positions)
        with torch.no_grad():
            resized = self._resized(before, old)
        # First the size, on which timm resizes the embeddings itself, then those from the one function for all.
        self.tower.set_grid(self.grid)
        owner, _, name = self.tower.positions.rpartition(".")
        setattr(self.tower.get_submodule(owner), name, nn.Parameter(resized, requires_grad=before.requires_grad))

    def _resized(self, positions: Tensor, old: Grid) -> Tensor:
        """Position embeddings (..., tokens, dim) of the grid `old`, for this one."""
        tokens = positions.reshape(-1, positions.shape[-1])
        resized = resize_positions(tokens, old, self.grid, prefix_tokens=self.tower.position_prefix)
        return resized.reshape(*positions.shape[:-2], *resized.shape)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        """Write the grid as it is: the buffer is empty after `to_empty`."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}{GRID_NAME}"] = self._grid_on(destination[f"{prefix}{GRID_NAME}"].device)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        *args: Any,
    ) -> None:
        """Resize the position embeddings of a checkpoint from its own grid, before the modules inside load them."""
        name, positions = f"{prefix}{GRID_NAME}", f"{prefix}tower.{self.tower.positions}"
        if name in state_dict:
            grid = self.grid if state_dict[name].is_meta else tuple(state_dict[name].tolist())
            if grid != self.grid and positions in state_dict:
                state_dict[positions] = self._resized(state_dict[positions], grid)
            state_dict[name] = self._grid_on(state_dict[name].device)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, *args)

    def extra_repr(self) -> str:
        return (
            f"projected={self.projected}, image_size={self.image_size}, threshold={self.threshold}, "
            f"num_cameras={self.num_cameras}, camera_scale={self.camera_scale}, camera_tokens={self.camera_tokens!r}"
        )
