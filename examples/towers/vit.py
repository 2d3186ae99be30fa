"""Compact vision transformer built from `SegmentationModulatedAttention`, trained from scratch.

Any module with the attributes `dim` and `grid` and the signature of `VisionTransformer.forward` can replace it in a
method.
"""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from stmi_layers import SegmentationModulatedAttention, token_foreground
from stmi_layers.backbones import choose_layers
from stmi_layers.backbones.positions import GRID_NAME

Placement = Literal["all", "early", "late", "none"]


class VisionTransformer(nn.Module):
    """Tokens of every modality from shared weights; masks steer the attention in every block.

    Args:
        image_size: height and width of the images in pixels.
        patch_size: side of a patch in pixels; a power of two that divides height and width.
        dim: width of the tokens.
        depth: number of blocks.
        num_heads: attention heads per block.
        mlp_ratio: hidden width of the feed-forward networks, as a multiple of `dim`.
        stem_width: number of channels at the first scale of the convolutional stem; it doubles with every scale, up to
            `dim`.
        stem_depth: number of convolutions at each scale.
        strength: initial alpha and beta of every block.
        foreground_threshold: share of a patch that the mask must cover for the patch to be foreground.
        per_head: learn the strengths per head instead of per block.
        shared_strengths: learn one alpha and beta for all modulated blocks together.
        modulated_blocks: blocks in which SFM acts: "all", the "early" half, the "late" half or "none". In other blocks
            both strengths stay 0, which is plain attention.
        perturbation: probability in training that a background token counts as foreground.
    """

    def __init__(
        self,
        image_size: tuple[int, int],
        *,
        patch_size: int = 8,
        dim: int = 128,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        stem_width: int = 64,
        stem_depth: int = 1,
        strength: float = 0.5,
        foreground_threshold: float = 0.5,
        per_head: bool = False,
        shared_strengths: bool = False,
        modulated_blocks: Placement = "all",
        perturbation: float = 0.0,
    ) -> None:
        super().__init__()
        if patch_size & (patch_size - 1) or patch_size < 2 or any(side % patch_size for side in image_size):
            rule = "patch_size must be a power of two, at least 2, that divides height and width"
            raise ValueError(f"{rule}; received patch_size={patch_size}, image_size={image_size}")
        if stem_depth < 1:
            raise ValueError(f"stem_depth must be at least 1; received {stem_depth}")
        self.image_size, self.dim, self.width, self.foreground_threshold = image_size, dim, dim, foreground_threshold
        self.grid = (image_size[0] // patch_size, image_size[1] // patch_size)
        self.stem = convolutional_stem(patch_size, stem_width, dim, stem_depth)
        self.class_token = nn.Parameter(torch.empty(dim))
        self.positions = nn.Parameter(torch.empty(1 + self.grid[0] * self.grid[1], dim))
        # The grid is saved with the weights: 16 x 8 and 8 x 16 positions have equal shapes but different meanings.
        self.register_buffer(GRID_NAME, torch.tensor(self.grid))
        self.register_load_state_dict_pre_hook(_refuse_other_grid)
        self.blocks = nn.ModuleList(
            Block(
                dim,
                mlp_ratio,
                SegmentationModulatedAttention(
                    dim, num_heads, alpha=strength, beta=strength, per_head=per_head, perturbation=perturbation
                ),
            )
            for _ in range(depth)
        )
        self._place_strengths(modulated_blocks, shared=shared_strengths)
        self.norm = nn.LayerNorm(dim)
        nn.init.normal_(self.class_token, std=0.02)
        nn.init.normal_(self.positions, std=0.02)

    def _place_strengths(self, modulated_blocks: Placement, *, shared: bool) -> None:
        """Hold the strengths of plain blocks at 0, and let the other blocks share one pair if `shared`."""
        depth, attentions = len(self.blocks), [block.get_submodule("attention") for block in self.blocks]
        self.modulated = modulated_blocks != "none"
        chosen = set() if modulated_blocks == "none" else choose_layers(modulated_blocks, depth)
        for name in ("alpha", "beta"):
            for index in set(range(depth)) - chosen:
                nn.init.zeros_(attentions[index].get_parameter(name).requires_grad_(False))
            for index in chosen if shared else ():
                setattr(attentions[index], name, attentions[min(chosen)].get_parameter(name))

    def forward(
        self,
        images: Float[Tensor, "batch modalities 3 height width"],
        masks: Bool[Tensor, "batch modalities height width"] | None = None,
        cameras: Int[Tensor, " batch"] | None = None,
        extra: Float[Tensor, "batch modalities extra dim"] | None = None,
    ) -> tuple[Float[Tensor, "batch modalities patches dim"], Float[Tensor, "batch modalities dim"]]:
        """Return patch tokens and the class token of every modality; `images` in [0, 1], `cameras` are ignored.

        Without masks the attention is plain. Tokens of `extra`, which include their positions, enter and leave after
        the patches, and count as foreground.
        """
        modalities = images.shape[1]
        if images.shape[3:] != self.image_size:
            raise ValueError(f"images must be {self.image_size} pixels; received shape {tuple(images.shape)}")
        foreground = None
        if masks is not None and self.modulated:
            foreground = token_foreground(masks.flatten(0, 1), self.grid, threshold=self.foreground_threshold)
        patches = rearrange(self.stem((images.flatten(0, 1) - 0.5) / 0.5), "b d rows columns -> b (rows columns) d")
        tokens = (
            torch.cat([repeat(self.class_token, "d -> b 1 d", b=patches.shape[0]), patches], dim=1) + self.positions
        )
        if extra is not None:
            tokens = torch.cat([tokens, extra.flatten(0, 1).to(tokens.dtype)], dim=1)
            foreground = None if foreground is None else F.pad(foreground, (0, extra.shape[2]), value=True)
        for block in self.blocks:
            tokens = block(tokens, foreground)
        tokens = self.norm(tokens).unflatten(0, (-1, modalities))
        return tokens[:, :, 1:], tokens[:, :, 0]


class Block(nn.Module):
    """A pre-norm transformer block whose self-attention is modulated by the mask."""

    def __init__(self, dim: int, mlp_ratio: float, attention: SegmentationModulatedAttention) -> None:
        super().__init__()
        hidden = int(dim * mlp_ratio)
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, tokens: Tensor, foreground: Tensor | None) -> Tensor:
        tokens = tokens + self.attention(self.attention_norm(tokens), foreground)
        return tokens + self.mlp(self.mlp_norm(tokens))


def convolutional_stem(patch_size: int, width: int, dim: int, depth: int) -> nn.Sequential:
    """Build strided convolutions down to one vector per patch, which learn faster from few images than one layer."""
    layers: list[nn.Module] = []
    channels = 3
    for level in range(int(math.log2(patch_size))):
        wider = min(width * 2**level, dim)
        for stride in [2] + [1] * (depth - 1):
            layers += [nn.Conv2d(channels, wider, 3, stride, padding=1, bias=False), nn.BatchNorm2d(wider), nn.GELU()]
            channels = wider
    return nn.Sequential(*layers, nn.Conv2d(channels, dim, 1))


def _refuse_other_grid(module: nn.Module, state_dict: dict[str, Tensor], prefix: str, *_: object) -> None:
    stored = state_dict.get(f"{prefix}{GRID_NAME}")
    if stored is not None and tuple(stored.tolist()) != module.grid:
        raise ValueError(
            f"the checkpoint's positions are for a grid of {tuple(stored.tolist())} patches, the model's for "
            f"{module.grid}; build the model with the image size and patch size of the checkpoint"
        )
