"""Support for timm's vision transformers, alone or as a tower of open_clip: ViT, registers, SigLIP, EVA-02, DINOv3."""

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention, AttentionRope
from timm.layers.pos_embed_sincos import apply_rot_embed_cat
from timm.models.eva import EvaAttention, EvaBlock
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from stmi_layers.backbones.adapted import Adapted
from stmi_layers.backbones.mixin import Modulated, split_heads, split_projections
from stmi_layers.backbones.tower import (
    Colour,
    Grid,
    add_offset,
    append_tokens,
    refuse_patch_dropout,
    run_block,
    without_extra,
)


class _ModulatedTimm(Modulated):
    """Common base of timm's attentions: the steps that follow the queries, keys and values."""

    scale: float
    attn_drop: nn.Dropout
    norm: nn.Module
    proj: nn.Module
    proj_drop: nn.Module

    def finish(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, foreground: Tensor, is_causal: bool
    ) -> Tensor:
        if is_causal:
            raise ValueError("foreground cannot be combined with is_causal=True")
        self.refuse_dropout(self.attn_drop.p)
        attended = self.norm(self.attend(query, key, value, foreground, self.scale))
        gate = getattr(self, "gate", None)  # older releases have no gate
        if gate is not None:
            attended = attended * gate(x).sigmoid()
        return self.proj_drop(self.proj(attended))


class _ModulatedRotary(_ModulatedTimm):
    """Common base of attentions with rotary embeddings on the patches."""

    num_heads: int
    head_dim: int
    num_prefix_tokens: int
    qkv: Any  # one fused projection; if None, the next three
    q_proj: Any
    k_proj: Any
    v_proj: Any
    q_norm: nn.Module
    k_norm: nn.Module

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        foreground, attn_mask = self.route(attn_mask)
        if foreground is None:
            return super().forward(x, rope, attn_mask, is_causal)
        query, key, value = self.project(x)
        query, key = self.rotate(self.q_norm(query), rope), self.rotate(self.k_norm(key), rope)
        groups = self.num_heads // key.shape[1]
        if groups > 1:
            key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
        return self.finish(x, query, key, value, foreground, is_causal)

    def project(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.qkv is None:
            projections = (self.q_proj, self.k_proj, self.v_proj)
            return tuple(split_heads(layer(x), layer.out_features // self.head_dim) for layer in projections)
        return split_projections(self.fused(x), self.num_heads)

    def fused(self, x: Tensor) -> Tensor:
        return self.qkv(x)

    def rotate(self, heads: Tensor, rope: Tensor | None) -> Tensor:
        if rope is None:
            return heads
        prefix, patches = heads[:, :, : self.num_prefix_tokens], heads[:, :, self.num_prefix_tokens :]
        rotated = apply_rot_embed_cat(patches, rope, half=getattr(self, "rotate_half", False))
        return torch.cat([prefix, rotated.to(prefix.dtype)], dim=2)


class ModulatedAttention(_ModulatedTimm, Attention):
    """Modulated attention of `VisionTransformer`."""

    unmodulated = Attention

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        foreground, attn_mask = self.route(attn_mask)
        if foreground is None:
            return super().forward(x, attn_mask, is_causal)
        query, key, value = split_projections(self.qkv(x), self.num_heads)
        return self.finish(x, self.q_norm(query), self.k_norm(key), value, foreground, is_causal)


class ModulatedAttentionRope(_ModulatedRotary, AttentionRope):
    """Modulated attention of `Eva` with `attn_type="rope"`, also with fewer key heads than query heads."""

    unmodulated = AttentionRope


class ModulatedEvaAttention(_ModulatedRotary, EvaAttention):
    """Modulated attention of `Eva`, without a bias on the keys."""

    unmodulated = EvaAttention

    def fused(self, x: Tensor) -> Tensor:
        if self.q_bias is None or self.v_bias is None:
            return self.qkv(x)
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])  # pyright: ignore[reportArgumentType]
        return F.linear(x, self.qkv.weight, bias)


class AdaptedBlock(Adapted, Block):
    """Adapted block of `VisionTransformer`."""

    unadapted = Block

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        x, attn_mask = self.open(x, attn_mask)
        attended = self.attn(self.norm1(x), attn_mask=attn_mask, is_causal=is_causal)
        x = x + self.drop_path1(self.ls1(attended))
        return self.close(x, self.drop_path2(self.ls2(self.mlp(self.norm2(x)))))


class AdaptedEvaBlock(Adapted, EvaBlock):
    """Adapted block of `Eva`."""

    unadapted = EvaBlock

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        x, attn_mask = self.open(x, attn_mask)
        attended = self.attn(self.norm1(x), rope=rope, attn_mask=attn_mask, is_causal=is_causal)
        x = x + self.drop_path1(attended if self.gamma_1 is None else self.gamma_1 * attended)
        fed = self.mlp(self.norm2(x))
        return self.close(x, self.drop_path2(fed if self.gamma_2 is None else self.gamma_2 * fed))


ADAPTED = {Block: AdaptedBlock, EvaBlock: AdaptedEvaBlock}

MODULATED = {
    Attention: ModulatedAttention,
    AttentionRope: ModulatedAttentionRope,
    EvaAttention: ModulatedEvaAttention,
}


def blocks(model: Any) -> list[nn.Module]:
    return list(getattr(model, "trunk", model).blocks)


def attention(block: nn.Module) -> nn.Module:
    return getattr(block, "attn", block)


def tower(model: nn.Module, projected: bool) -> "TimmTower":
    return TimmTower(model, projected)


class TimmTower(nn.Module):
    """Tower of timm's vision transformers: tokens after the final norm, and after open_clip's head if projected."""

    def __init__(self, model: Any, projected: bool) -> None:
        super().__init__()
        trunk = getattr(model, "trunk", model)
        head = model.head.modules() if trunk is not model else ()
        projections = [module for module in head if isinstance(module, nn.Linear)]
        if projected and not projections:
            raise ValueError("projected=True needs an open_clip tower whose head projects; received no such head")
        self.model, self.projected = model, projected
        self.channels, self.patch_size = trunk.patch_embed.proj.in_channels, tuple(trunk.patch_embed.patch_size)
        self.width = trunk.embed_dim
        self.dim = projections[-1].out_features if projected else self.width
        self.prefix_tokens, self.class_token = trunk.num_prefix_tokens, trunk.cls_token is not None
        prefix = "model.trunk." if trunk is not model else "model."
        self.positions = None if trunk.pos_embed is None else f"{prefix}pos_embed"
        self.position_prefix = 0 if trunk.no_embed_class else trunk.num_prefix_tokens
        config = getattr(trunk, "pretrained_cfg", None) or {}
        self.mean: Colour = tuple(getattr(model, "image_mean", None) or config.get("mean", (0.5, 0.5, 0.5)))
        self.std: Colour = tuple(getattr(model, "image_std", None) or config.get("std", (0.5, 0.5, 0.5)))

    @property
    def trunk(self) -> Any:
        return getattr(self.model, "trunk", self.model)

    def grid(self) -> Grid:
        return tuple(self.trunk.patch_embed.grid_size)

    def set_grid(self, grid: Grid) -> None:
        self.trunk.set_input_size(img_size=(grid[0] * self.patch_size[0], grid[1] * self.patch_size[1]))

    def forward(
        self, images: Tensor, foreground: Tensor | None, offset: Tensor | None, extra: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        trunk = self.trunk
        refuse_patch_dropout(trunk.patch_drop, "the trunk's patch_drop")
        embedded = trunk._pos_embed(trunk.patch_embed(images))
        tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
        if rope is not None and extra is not None:
            raise ValueError("extra needs a model with learned positions; received a model with rotary positions")
        tokens = add_offset(trunk.norm_pre(tokens), offset)
        tokens = append_tokens(tokens, extra, offset, trunk.norm_pre)
        for index, block in enumerate(trunk.blocks):
            arguments = {"attn_mask": foreground}
            if rope is not None:
                arguments["rope"] = rope[index] if trunk.rope_mixed else rope
            tokens = run_block(block, tokens, trunk.grad_checkpointing, **arguments)
        tokens = trunk.norm(tokens)
        pooled = trunk.forward_head(without_extra(tokens, extra), pre_logits=True)
        if trunk.global_pool == "":  # no pooling: the head returns all tokens
            pooled = pooled[:, 0] if self.class_token else pooled.mean(dim=1)
        patches = trunk.fc_norm(tokens[:, self.prefix_tokens :])
        return (self.model.head(patches), self.model.head(pooled)) if self.projected else (patches, pooled)
