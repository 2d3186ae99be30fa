"""Support for the vision models of transformers: CLIP, DINOv2, SigLIP; masks are the keyword argument `foreground`."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPAttention, CLIPEncoderLayer, CLIPVisionModel
from transformers.models.dinov2.modeling_dinov2 import Dinov2Attention, Dinov2Layer, Dinov2Model
from transformers.models.siglip.modeling_siglip import SiglipAttention, SiglipEncoderLayer, SiglipVisionModel

from stmi_layers.backbones.adapted import Adapted
from stmi_layers.backbones.mixin import Modulated, split_heads
from stmi_layers.backbones.tower import Colour, Grid, add_offset, append_tokens, without_extra


class _ModulatedTransformers(Modulated):
    """Common base of attentions with separate projections to queries, keys and values."""

    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module
    config: Any
    head_dim: int
    num_heads: int
    dropout: float
    out_proj: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        foreground: Tensor | None = None,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor | None]:
        if foreground is None or self.alpha is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        if attention_mask is not None:
            raise ValueError("foreground cannot be combined with attention_mask")
        heads, dropout, output = self.names()
        self.refuse_dropout(dropout)
        layers = (self.q_proj, self.k_proj, self.v_proj)
        query, key, value = (split_heads(layer(hidden_states), heads) for layer in layers)
        mask, scale = self.perturbation(foreground), self.head_dim**-0.5
        attended = output(self.attend_to(query, key, value, mask, scale))
        # As in the original, only the eager form returns weights.
        eager = self.config._attn_implementation == "eager"
        return attended, self.weights(query, key, mask, scale) if eager else None

    def names(self) -> tuple[int, float, nn.Module]:
        """Return number of heads, dropout of the weights and output projection, whose names differ between models."""
        return self.num_heads, self.dropout, self.out_proj


class ModulatedCLIPAttention(_ModulatedTransformers, CLIPAttention):
    """Modulated attention of `CLIPVisionModel`."""

    unmodulated = CLIPAttention


class ModulatedSiglipAttention(_ModulatedTransformers, SiglipAttention):
    """Modulated attention of `SiglipVisionModel`, but not of its pooling head."""

    unmodulated = SiglipAttention


class ModulatedDinov2Attention(_ModulatedTransformers, Dinov2Attention):
    """Modulated attention of `Dinov2Model`, whose attributes have other names."""

    unmodulated = Dinov2Attention

    def names(self) -> tuple[int, float, nn.Module]:
        return self.num_attention_heads, self.attention_dropout, self.o_proj


class _AdaptedEncoderLayer(Adapted):
    """Common base of the layers of CLIP and SigLIP."""

    layer_norm1: nn.Module
    layer_norm2: nn.Module
    self_attn: nn.Module
    mlp: nn.Module

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        foreground: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        tokens, mask = _open(self, hidden_states, attention_mask, foreground)
        tokens = tokens + self.self_attn(self.layer_norm1(tokens), attention_mask, **mask, **kwargs)[0]
        return self.close(tokens, self.mlp(self.layer_norm2(tokens)))


class AdaptedCLIPLayer(_AdaptedEncoderLayer, CLIPEncoderLayer):
    """Adapted layer of `CLIPVisionModel`."""

    unadapted = CLIPEncoderLayer


class AdaptedSiglipLayer(_AdaptedEncoderLayer, SiglipEncoderLayer):
    """Adapted layer of `SiglipVisionModel`."""

    unadapted = SiglipEncoderLayer


class AdaptedDinov2Layer(Adapted, Dinov2Layer):
    """Adapted layer of `Dinov2Model`."""

    unadapted = Dinov2Layer

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        *,
        foreground: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        tokens, mask = _open(self, hidden_states, attention_mask, foreground)
        attended = self.attention(self.norm1(tokens), attention_mask=attention_mask, **mask, **kwargs)[0]
        tokens = self.drop_path(self.layer_scale1(attended)) + tokens
        return self.close(tokens, self.drop_path(self.layer_scale2(self.mlp(self.norm2(tokens)))))


def _open(
    layer: Adapted, tokens: Tensor, attention_mask: Tensor | None, foreground: Tensor | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the tokens with prompts, and the foreground mask, if there is one, as a keyword argument."""
    if attention_mask is not None and layer.prompts is not None:
        raise ValueError("prompts cannot be combined with attention_mask")
    tokens, foreground = layer.open(tokens, foreground)
    return tokens, {} if foreground is None else {"foreground": foreground}


ADAPTED = {CLIPEncoderLayer: AdaptedCLIPLayer, SiglipEncoderLayer: AdaptedSiglipLayer, Dinov2Layer: AdaptedDinov2Layer}

MODULATED = {
    CLIPAttention: ModulatedCLIPAttention,
    SiglipAttention: ModulatedSiglipAttention,
    Dinov2Attention: ModulatedDinov2Attention,
}


def blocks(model: Any) -> list[nn.Module]:
    encoder = getattr(model, "vision_model", model).encoder
    return list(encoder.layer if isinstance(model, Dinov2Model) else encoder.layers)


def attention(block: Any) -> nn.Module:
    return block.attention if hasattr(block, "attention") else block.self_attn


def tower(model: nn.Module, projected: bool) -> "TransformersTower":
    return TransformersTower(model, projected)


class TransformersTower(nn.Module):
    """Tower of transformers' vision models: tokens after the final norm, and after `visual_projection` if projected."""

    mean: Colour
    std: Colour

    def __init__(self, model: Any, projected: bool) -> None:
        super().__init__()
        if projected and not hasattr(model, "visual_projection"):
            rule = f"projected=True needs a projection; received {type(model).__name__}"
            raise ValueError(f"{rule}. Use CLIPVisionModelWithProjection")
        self.model, self.projected = model, projected
        config = model.config
        self.width = config.hidden_size
        self.dim = config.projection_dim if projected else self.width
        self.channels, self.patch_size = config.num_channels, _pair(config.patch_size)
        self.prefix_tokens = self.position_prefix = 0 if isinstance(self.vision, SiglipVisionModel) else 1
        self.class_token = self.prefix_tokens == 1
        name = "position_embeddings" if isinstance(self.vision, Dinov2Model) else "position_embedding.weight"
        self.positions = f"model.{'' if self.vision is model else 'vision_model.'}embeddings.{name}"
        if isinstance(self.vision, CLIPVisionModel):
            self.mean, self.std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
        elif isinstance(self.vision, Dinov2Model):
            self.mean, self.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        else:
            self.mean = self.std = (0.5, 0.5, 0.5)

    @property
    def vision(self) -> Any:
        return getattr(self.model, "vision_model", self.model)

    def _sized(self) -> Any:
        """Return the module that stores the size of the images."""
        embeddings = self.vision.embeddings
        return embeddings.patch_embeddings if isinstance(self.vision, Dinov2Model) else embeddings

    def grid(self) -> Grid:
        height, width = _pair(self._sized().image_size)
        return height // self.patch_size[0], width // self.patch_size[1]

    def set_grid(self, grid: Grid) -> None:
        sized, patches = self._sized(), grid[0] * grid[1]
        sized.image_size = (grid[0] * self.patch_size[0], grid[1] * self.patch_size[1])
        sized.num_patches = patches
        if not isinstance(self.vision, Dinov2Model):
            sized.num_positions = sized.position_embedding.num_embeddings = patches + self.position_prefix
            device = sized.position_ids.device
            sized.position_ids = torch.arange(sized.num_positions, device=device)[None]

    def forward(
        self, images: Tensor, foreground: Tensor | None, offset: Tensor | None, extra: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        vision = self.vision
        tokens = add_offset(_embed(vision, images), offset)
        tokens = append_tokens(tokens, extra, offset, getattr(vision, "pre_layrnorm", nn.Identity()))
        arguments = {} if foreground is None else {"foreground": foreground}
        for layer in blocks(vision):
            tokens = layer(tokens, None, **arguments)
        tokens = getattr(vision, "layernorm" if isinstance(self.vision, Dinov2Model) else "post_layernorm")(tokens)
        patches, pooled = tokens[:, self.prefix_tokens :], tokens[:, 0]
        if not self.class_token:
            own = without_extra(tokens, extra)
            pooled = vision.head(own) if vision.use_head else own.mean(dim=1)
        if self.projected:
            return self.model.visual_projection(patches), self.model.visual_projection(pooled)
        return patches, pooled


def _embed(vision: Any, images: Tensor) -> Tensor:
    """Embed images of any size, unlike the model's own embeddings, which refuse images that are not square."""
    embeddings = vision.embeddings
    if isinstance(vision, Dinov2Model):
        convolution, first = embeddings.patch_embeddings.projection, embeddings.cls_token
        positions = embeddings.position_embeddings
    else:
        convolution, first = embeddings.patch_embedding, getattr(embeddings, "class_embedding", None)
        positions = embeddings.position_embedding.weight
    tokens = convolution(images.to(convolution.weight.dtype)).flatten(2).transpose(1, 2)
    if first is not None:
        tokens = torch.cat([first.expand(tokens.shape[0], 1, -1), tokens], dim=1)
    tokens = tokens + positions
    if isinstance(vision, Dinov2Model):
        return embeddings.dropout(tokens)
    return vision.pre_layrnorm(tokens) if isinstance(vision, CLIPVisionModel) else tokens


def _pair(size: int | tuple[int, int] | list[int]) -> Grid:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
