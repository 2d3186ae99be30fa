"""Support for the vision transformer of open_clip itself, with its default blocks and its custom blocks."""

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import (
    Attention,
    CustomResidualAttentionBlock,
    ResidualAttentionBlock,
    VisionTransformer,
)
from torch import Tensor, nn

from stmi_layers.backbones.adapted import Adapted
from stmi_layers.backbones.mixin import Modulated, ModulatedMultiheadAttention, refuse_multihead, split_projections
from stmi_layers.backbones.tower import (
    Colour,
    Grid,
    add_offset,
    append_tokens,
    refuse_patch_dropout,
    run_block,
    without_extra,
)

# Mean and standard deviation of CLIP's training images; towers built by create_model hold their own.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class ModulatedBlock(ResidualAttentionBlock):
    """Passes a foreground mask to its attention unchanged; the original casts every mask to the dtype of the tokens."""

    unmodulated = ResidualAttentionBlock

    def attention(
        self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        if attn_mask is None or attn_mask.dtype != torch.bool or attn_mask.dim() != 2:
            return super().attention(q_x, k_x, v_x, attn_mask)
        return self.attn(q_x, q_x, q_x, need_weights=False, foreground=attn_mask)[0]


class ModulatedAttention(Modulated, Attention):
    """Modulated attention of the custom blocks: norms of queries and keys, scaled heads, norm before the projection."""

    unmodulated = Attention

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        foreground, attn_mask = self.route(attn_mask)
        if foreground is None:
            return super().forward(x, attn_mask)
        self.refuse_dropout(self.attn_drop.p)
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = split_projections(projected, self.num_heads)
        attended = self.attend(self.ln_q(query), self.ln_k(key), value, foreground, self.scale)
        if self.head_scale is not None:
            attended = attended * self.head_scale.flatten().repeat_interleave(self.head_dim)
        return self.out_drop(self.out_proj(self.ln_inner(attended)))


class AdaptedBlock(Adapted, ResidualAttentionBlock):
    """Adapted default block."""

    unadapted = ResidualAttentionBlock

    def forward(
        self, q_x: Tensor, k_x: Tensor | None = None, v_x: Tensor | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        if k_x is not None or v_x is not None:
            raise ValueError("k_x and v_x must be None in an adapted block, because it needs self-attention")
        tokens, attn_mask = self.open(q_x, attn_mask)
        tokens = tokens + self.ls_1(self.attention(self.ln_1(tokens), attn_mask=attn_mask))
        return self.close(tokens, self.ls_2(self.mlp(self.ln_2(tokens))))


class AdaptedModulatedBlock(AdaptedBlock, ModulatedBlock):
    """Adapted default block whose attention is modulated."""

    unadapted, unmodulated = ModulatedBlock, AdaptedBlock


class AdaptedCustomBlock(Adapted, CustomResidualAttentionBlock):
    """Adapted custom block."""

    unadapted = CustomResidualAttentionBlock

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        tokens, attn_mask = self.open(x, attn_mask)
        tokens = tokens + self.ls_1(self.ln_attn(self.attn(self.ln_1(tokens), attn_mask=attn_mask)))
        return self.close(tokens, self.ls_2(self.mlp(self.ln_2(tokens))))


ADAPTED = {
    ResidualAttentionBlock: AdaptedBlock,
    ModulatedBlock: AdaptedModulatedBlock,
    CustomResidualAttentionBlock: AdaptedCustomBlock,
}

MODULATED = {
    ResidualAttentionBlock: ModulatedBlock,
    AdaptedBlock: AdaptedModulatedBlock,
    nn.MultiheadAttention: ModulatedMultiheadAttention,
    Attention: ModulatedAttention,
}


def blocks(model: VisionTransformer) -> list[nn.Module]:
    return list(model.transformer.resblocks)


def attention(block: Any) -> nn.Module:
    found = block.attn
    if isinstance(found, nn.MultiheadAttention):
        refuse_multihead(found)
    elif getattr(found, "logit_scale", None) is not None:
        rule = "model must have no scaled cosine attention, which modulate does not support"
        raise ValueError(f"{rule}. Build the model with scaled_cosine_attn=False")
    return found


def tower(model: VisionTransformer, projected: bool) -> "OpenClipTower":
    return OpenClipTower(model, projected)


class OpenClipTower(nn.Module):
    """Tower of open_clip's vision transformer: returns tokens after `ln_post`, and after `proj` if projected."""

    positions, position_prefix, prefix_tokens, class_token = "model.positional_embedding", 1, 1, True

    def __init__(self, model: Any, projected: bool) -> None:
        super().__init__()
        if model.attn_pool is not None:
            raise ValueError(
                "TokenBackbone needs a tower without attentional pooling, because pooling replaces the patch tokens"
            )
        if projected and model.proj is None:
            raise ValueError("projected=True needs a model with a projection; received a model with proj=None")
        self.model, self.projected = model, projected
        self.width = model.conv1.out_channels
        self.dim = model.output_dim if projected else self.width
        self.channels, self.patch_size = model.conv1.in_channels, model.patch_size
        self.mean: Colour = tuple(getattr(model, "image_mean", None) or MEAN)
        self.std: Colour = tuple(getattr(model, "image_std", None) or STD)

    def grid(self) -> Grid:
        return self.model.grid_size

    def set_grid(self, grid: Grid) -> None:
        self.model.grid_size = grid
        self.model.image_size = (grid[0] * self.patch_size[0], grid[1] * self.patch_size[1])

    def forward(
        self, images: Tensor, foreground: Tensor | None, offset: Tensor | None, extra: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        model = self.model
        refuse_patch_dropout(model.patch_dropout, "model.patch_dropout")
        tokens = add_offset(model._embeds(images), offset)
        tokens = append_tokens(tokens, extra, offset, model.ln_pre)
        for block in model.transformer.resblocks:
            tokens = run_block(block, tokens, model.transformer.grad_checkpointing, attn_mask=foreground)
        pooled, patches = model._pool(without_extra(tokens, extra))[0], model.ln_post(tokens[:, 1:])
        if self.projected:
            return patches @ model.proj, pooled @ model.proj
        return patches, pooled
