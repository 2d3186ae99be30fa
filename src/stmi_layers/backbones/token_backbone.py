"""Common interface to the vision transformers of all libraries: from images and masks to patch and global tokens."""

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
    r"""Computes patch tokens and a global token by a vision transformer of open_clip, timm or transformers.

    Use this module for methods that need tokens of any backbone. It learns the parameters of `model` and the camera
    embedding. Pass **normalised** images, `(image - mean) / std`, where `image` is in [0, 1]; the attributes `mean` and
    `std` hold one number per channel, those of the pretraining. An image of one channel, such as near infrared or
    thermal, is repeated to the channels of the model.

    The global token is the pooled token of `model`: its class token after the final norm, the mean of its patches, or
    its attention pool. Patch tokens also come after the final norm. Activation checkpointing follows the switch of the
    library (`set_grad_checkpointing`, `activation_checkpointing_enable`), also with masks.

    The size of the images is fixed at construction, where the position embeddings are resized to this size. The state
    dict holds the grid of patches as `position_grid`. Loading a state dict of another grid resizes the position
    embeddings: 16 x 8 into 8 x 16 is resized, not transposed. After a resize, call this module instead of `model`,
    because the forward of transformers refuses images that are not square. Also save the `state_dict()` of this
    module, because `save_pretrained` writes the old size into its configuration.

    Args:
        model: an open_clip `VisionTransformer` or `TimmModel` (`clip.visual`), a timm `VisionTransformer` or `Eva`, or
            a `CLIPVisionModel`, `CLIPVisionModelWithProjection`, `Dinov2Model` or `SiglipVisionModel` of transformers;
            modulated or not. The module holds `model` itself, no copy.
        projected: whether to apply the projection of CLIP to every token, into the common space with texts.
        image_size: height and width of the images in pixels, multiples of the patch; by default those of `model`.
        threshold: share of a patch's area, in (0, 1], from which on the patch is foreground.
        num_cameras: number of cameras or views, to learn an embedding per camera, which starts at 0 and is added to the
            class token before the first block; None learns no embedding.
        camera_scale: factor of the camera embedding.
        camera_tokens: "class", or "all" to add the camera embedding to every token.

    Attributes:
        grid: rows and columns of patches.
        dim: width of the tokens.
        prefix_tokens: number of class and register tokens, which are not among the returned patches.
        patch_size: height and width of a patch in pixels.
        mean: mean of each channel, for images in [0, 1].
        std: standard deviation of each channel, for images in [0, 1].

    Raises:
        TypeError: when `model` is not supported; the message lists the supported models.
        ImportError: when the library of `model` is too old; the message names the extra to install.
        ValueError: when the patch does not divide `image_size`, `threshold` is outside (0, 1], `model` has no
            projection for `projected=True`, or no class token for `num_cameras`.

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
        """Compute the tokens of each image, in one pass for all modalities.

        Args:
            images: normalised images of `image_size`, with an axis for the modalities or without.
            foreground: masks in pixels, True or the probability between 0 and 1, at any resolution. A mask without an
                axis for the modalities holds for all modalities. None leaves the attention unmodulated.
            cameras: index of the camera or view of each sample, from 0. An index outside `num_cameras` gets the mean of
                all embeddings, and so does every sample when None.
            extra: further tokens of each image, `tower.width` wide with their positions added, such as a caption's.
                They are appended to the patches and returned after the patches. They are foreground and not pooled.

        Returns:
            The patch tokens, row by row, and the global token; with an axis for the modalities when `images` has one.

        Raises:
            ValueError: when size, channels or modalities of `images` do not fit, `foreground` is passed to a model that
                is not modulated, or `cameras` is passed without `num_cameras`.
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
        first = self._blocks_of(self.tower.model)[0]  # modulate changes every block
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
        """Return the grid in the form of the state dict: rows, columns."""
        return torch.tensor(self.grid, device=device)

    def _new_cameras(self, num_cameras: int) -> nn.Parameter:
        if num_cameras < 1:
            raise ValueError(f"num_cameras must be at least 1; received {num_cameras}")
        if not self.tower.class_token:
            raise ValueError("num_cameras needs a model with a class token, which takes the camera embedding")
        like = next(self.tower.parameters())
        return nn.Parameter(torch.zeros(num_cameras, self.tower.width, device=like.device, dtype=like.dtype))

    def _resize(self, image_size: tuple[int, int]) -> None:
        """Set the size of the images, and interpolate the position embeddings."""
        old, self.grid = self.grid, towers.new_grid(image_size, self.patch_size)
        if self.tower.positions is None or old == self.grid:
            self.tower.set_grid(self.grid)
            return
        before = self.tower.get_parameter(self.tower.positions)
        with torch.no_grad():
            resized = self._resized(before, old)
        # First the size, because timm then resizes the embeddings itself; `resized` replaces its result.
        self.tower.set_grid(self.grid)
        owner, _, name = self.tower.positions.rpartition(".")
        setattr(self.tower.get_submodule(owner), name, nn.Parameter(resized, requires_grad=before.requires_grad))

    def _resized(self, positions: Tensor, old: Grid) -> Tensor:
        """Return position embeddings (..., tokens, dim) of the grid `old`, resized to the grid of this module."""
        tokens = positions.reshape(-1, positions.shape[-1])
        resized = resize_positions(tokens, old, self.grid, prefix_tokens=self.tower.position_prefix)
        return resized.reshape(*positions.shape[:-2], *resized.shape)

    def _save_to_state_dict(self, destination: dict[str, Tensor], prefix: str, keep_vars: bool) -> None:
        """Write the grid from the attribute, because the buffer has no valid content after `to_empty`."""
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
