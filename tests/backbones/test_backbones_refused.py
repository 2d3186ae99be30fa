"""Arguments that `modulate` and `TokenBackbone` refuse, before they change the model."""

import pytest
import torch
from torch import nn

from stmi_layers.backbones import TokenBackbone, modulate
from stmi_layers.backbones.mixin import Modulated
from tests.backbones.backbone_checks import CUSTOM, build, example, open_clip_vit, strengths, timm_vit, transformers_vit

pytest.importorskip("torchvision")
for library in ("open_clip", "timm", "transformers"):
    pytest.importorskip(library)


def tiny() -> nn.Module:
    return build("timm `VisionTransformer`")


def test_text_towers_and_poolers_are_no_vision_transformers():
    """Of a model whose own vision tower is not known, nothing else is modulated in its place."""
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, head_width=8, image_size=32)
    clip = CLIP(16, vision, CLIPTextCfg(context_length=8, vocab_size=32, width=16, heads=2, layers=1))
    for model in (clip, nn.Sequential(clip), clip.transformer):
        with pytest.raises(TypeError, match=r"modulate knows no vision transformer in .*Known models"):
            modulate(model)
    siglip2 = transformers_vit("Siglip2VisionModel", "Siglip2VisionConfig")
    with pytest.raises(TypeError, match=r"modulate knows no vision transformer in .*Siglip2VisionModel"):
        modulate(siglip2)
    assert not strengths(clip)
    assert not strengths(siglip2)


def test_what_cannot_be_modulated_is_refused():
    with pytest.raises(TypeError, match=r"modulate knows no .* timm Eva.*'\.\[hf\]'.*modulated_attention"):
        modulate(nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(ValueError, match="modulated already; unmodulate"):
        modulate(modulate(tiny()))
    with pytest.raises(ValueError, match=r"one vision transformer; received .* modulate each"):
        modulate(nn.ModuleList([tiny(), tiny()]))
    with pytest.raises(ValueError, match="without kdim, vdim, add_bias_kv and add_zero_attn"):
        modulate(nn.MultiheadAttention(8, 2, kdim=4))
    with pytest.raises(ValueError, match=r"block 0 has an attention of .*DiffAttention"):
        modulate(timm_vit("vit_tiny_patch16_224", attn_layer="diff"))
    with pytest.raises(ValueError, match=r"TransformerEncoderLayer, which cannot pass a mask .* foreground="):
        modulate(nn.TransformerEncoderLayer(8, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": "middle"}, "layers must be .* received 'middle'"),
        ({"layers": [0, 2]}, "indices of the 2 blocks, 0 to 1; received \\[0, 2\\]"),
        ({"layers": []}, "indices of the 2 blocks"),
        ({"share": "heads"}, "share must be .* received 'heads'"),
        ({"perturbation": 2.0}, "probability"),
        ({"alpha": float("nan")}, "alpha and beta must be finite numbers; received alpha=nan, beta=0.1"),
        ({"beta": float("inf")}, "alpha and beta must be finite numbers; received alpha=0.1, beta=inf"),
    ],
)
def test_options_are_checked_before_anything_changes(options: dict, message: str):
    model = tiny()
    with pytest.raises(ValueError, match=message):
        modulate(model, **options)
    assert not any(isinstance(module, Modulated) for module in model.modules())
    assert not any("alpha" in name for name in model.state_dict())


def test_half_of_one_block_is_none():
    with pytest.raises(ValueError, match="layers='early' chooses none of the 1 blocks"):
        modulate(timm_vit("vit_tiny_patch16_224", depth=1), layers="early")


def test_scaled_cosine_attention_is_refused():
    with pytest.raises(ValueError, match="scaled_cosine_attn=False"):
        modulate(open_clip_vit(scaled_cosine_attn=True))


@pytest.mark.parametrize("family", ["open_clip", "timm", "transformers", "own"])
def test_attention_dropout_is_refused_in_training_with_a_mask(family: str):
    if family == "own":
        model = modulate(nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True))
        tokens = torch.randn(1, 3, 8)
        with pytest.raises(ValueError, match=r"attention dropout must be 0 .* received 0.1"):
            model(tokens, tokens, tokens, foreground=torch.ones(1, 3).bool())
        return
    if family == "open_clip":
        model = open_clip_vit(**CUSTOM)
        model.transformer.resblocks[0].attn.attn_drop.p = 0.1
    elif family == "timm":
        model = timm_vit("vit_tiny_patch16_224", attn_drop_rate=0.1)
    else:
        model = transformers_vit("Dinov2Model", "Dinov2Config", attention_probs_dropout_prob=0.1)
    backbone, inputs = TokenBackbone(modulate(model)), example(model)
    backbone.eval()(*inputs)
    backbone.train()(inputs[0])
    with pytest.raises(ValueError, match=r"attention dropout must be 0 .* received 0.1"):
        backbone(*inputs)


def test_multihead_attention_refuses_what_a_mask_does_not_go_with():
    attention, tokens = modulate(nn.MultiheadAttention(8, 2, batch_first=True)), torch.randn(2, 3, 8)
    foreground = torch.ones(2, 3).bool()
    with pytest.raises(ValueError, match="needs self-attention"):
        attention(tokens, tokens.clone(), tokens, foreground=foreground)
    with pytest.raises(ValueError, match="cannot be combined with key_padding_mask"):
        attention(tokens, tokens, tokens, key_padding_mask=~foreground, foreground=foreground)
    with pytest.raises(ValueError, match=r"\(batch, tokens\) = \(2, 3\).* received \(2, 4\)"):
        attention(tokens, tokens, tokens, foreground=torch.ones(2, 4).bool())


def test_libraries_refuse_other_masks_beside_foreground():
    foreground = torch.ones(1, 9).bool()
    with pytest.raises(ValueError, match="is_causal"):
        modulate(tiny()).blocks[0](torch.randn(1, 9, 32), attn_mask=foreground, is_causal=True)
    attention = modulate(build("transformers `CLIPVisionModel`")).encoder.layers[0].self_attn
    with pytest.raises(ValueError, match="attention_mask"):
        attention(torch.randn(1, 9, 32), torch.zeros(1, 1, 9, 9), foreground=foreground)


@pytest.mark.parametrize("family", ["open_clip", "timm", "eva"])
def test_patch_dropout_is_refused_in_training(family: str):
    if family == "open_clip":
        model = open_clip_vit(patch_dropout=0.5)
    else:
        name = "vit_tiny_patch16_224" if family == "timm" else "eva02_base_patch14_224"
        model = timm_vit(name, patch_drop_rate=0.5)
    backbone, inputs = TokenBackbone(modulate(model)), example(model)
    backbone.eval()(*inputs)
    with pytest.raises(ValueError, match=r"patch dropout must be off.*received 0.5.*Identity"):
        backbone.train()(*inputs)
