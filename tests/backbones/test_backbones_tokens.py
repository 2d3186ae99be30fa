"""`TokenBackbone`: tokens equal to those of the libraries, sizes, modalities, cameras, and refused arguments."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from stmi_layers import token_foreground
from stmi_layers.backbones import TokenBackbone, modulate, resize_positions
from tests.backbones.backbone_checks import (
    FAMILIES,
    build,
    example,
    open_clip_timm,
    open_clip_vit,
    timm_vit,
    transformers_vit,
)

pytest.importorskip("torchvision")
for library in ("open_clip", "timm", "transformers"):
    pytest.importorskip(library)

KNOWN = [family for family in FAMILIES if "MultiheadAttention" not in family]
SIZED = [family for family in KNOWN if "TimmModel" not in family]
WITH_CLASS_TOKEN = [family for family in KNOWN if "siglip" not in family.lower()]

every_family = pytest.mark.parametrize("family", KNOWN)


def openai(**options) -> nn.Module:
    return open_clip_vit(**options).eval()


def images_of(backbone: TokenBackbone, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, *backbone.image_size)


@every_family
def test_shapes_and_facts(family: str):
    backbone = TokenBackbone(modulate(build(family)), threshold=0.25)
    images, masks = example(backbone.tower.model)
    patches, global_token = backbone(images, masks)
    rows, columns = backbone.grid
    assert patches.shape == (2, 2, rows * columns, backbone.dim)
    assert global_token.shape == (2, 2, backbone.dim)
    assert backbone.image_size == (rows * backbone.patch_size[0], columns * backbone.patch_size[1])
    assert backbone.position_grid.tolist() == [rows, columns]
    assert len(backbone.mean) == len(backbone.std) == 3
    assert all(0.2 < value < 0.6 for value in backbone.mean + backbone.std)


@every_family
def test_one_pass_for_all_modalities_is_one_pass_for_each(family: str):
    backbone = TokenBackbone(modulate(build(family)))
    images, masks = example(backbone.tower.model)
    together = backbone(images, masks)
    shared = backbone(images, masks[:, 0])
    for modality in range(2):
        apart = backbone(images[:, modality], masks[:, modality])
        alone = backbone(images[:, modality], masks[:, 0].float())
        for actual, expected in zip((*together, *shared), (*apart, *alone), strict=True):
            torch.testing.assert_close(actual[:, modality], expected, rtol=1e-4, atol=1e-5)


def test_global_tokens_are_those_the_libraries_pool():
    for family in KNOWN:
        model = build(family)
        backbone = TokenBackbone(model)
        images, pooled = images_of(backbone), None
        if family.startswith("transformers"):
            pooled = model(images).pooler_output
        elif "TimmModel" in family:
            pooled = model.trunk(images)
        elif family.startswith("timm"):
            pooled = model(images)
        else:
            pooled = model._pool(model.transformer(model._embeds(images)))[0]
        torch.testing.assert_close(backbone(images)[1], pooled)


def test_projected_tokens_share_the_space_of_the_texts():
    model = openai()
    backbone = TokenBackbone(model, projected=True)
    images = images_of(backbone)
    patches, global_token = backbone(images)
    assert backbone.dim == patches.shape[-1] == 16
    torch.testing.assert_close(global_token, model(images))
    intermediate = model.forward_intermediates(images, indices=1, normalize_intermediates=True, output_fmt="NLC")
    torch.testing.assert_close(patches, intermediate["image_intermediates"][-1] @ model.proj)

    timm_tower = open_clip_timm().eval()
    backbone = TokenBackbone(timm_tower, projected=True)
    images = images_of(backbone, 1)
    torch.testing.assert_close(backbone(images)[1], timm_tower(images))
    assert backbone(images)[0].shape == (1, 100, backbone.dim) == (1, 100, 16)

    clip = transformers_vit("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=12).eval()
    backbone = TokenBackbone(clip, projected=True)
    images = images_of(backbone)
    torch.testing.assert_close(backbone(images)[1], clip(images).image_embeds)
    assert backbone(images)[0].shape == (2, 16, backbone.dim) == (2, 16, 12)


def test_two_libraries_agree_on_the_same_weights():
    """open_clip and transformers hold CLIP under other names; with a mask and without, their tokens are the same."""
    ours = build("open_clip `VisionTransformer`")
    theirs = transformers_vit("CLIPVisionModelWithProjection", "CLIPVisionConfig", projection_dim=16, hidden_act="gelu",
                              intermediate_size=128).eval()  # fmt: skip
    state = ours.state_dict()
    renamed = {
        "embeddings.class_embedding": state["class_embedding"],
        "embeddings.patch_embedding.weight": state["conv1.weight"],
        "embeddings.position_embedding.weight": state["positional_embedding"],
    }
    for name, value in state.items():
        new = name.replace("transformer.resblocks", "encoder.layers").replace("attn.out_proj", "self_attn.out_proj")
        for old, other in (("ln_pre", "pre_layrnorm"), ("ln_post", "post_layernorm"), ("ln_1", "layer_norm1"),
                           ("ln_2", "layer_norm2"), ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2")):  # fmt: skip
            new = new.replace(old, other)
        if "in_proj" in name:
            for part, chunk in zip("qkv", value.chunk(3), strict=True):
                renamed[new.replace("attn.in_proj_", f"self_attn.{part}_proj.")] = chunk
        elif new != name:
            renamed[new] = value
    backbone = TokenBackbone(modulate(ours), projected=True)
    twin = TokenBackbone(modulate(theirs), projected=True, image_size=(32, 16))
    renamed = {f"vision_model.{name}": value for name, value in renamed.items()}
    theirs.load_state_dict(renamed | {"visual_projection.weight": state["proj"].T}, strict=True)
    images, masks = example(ours)
    assert (twin.mean, twin.std) == (backbone.mean, backbone.std)
    torch.testing.assert_close(twin(images, masks), backbone(images, masks), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(twin(images), backbone(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", SIZED)
def test_images_of_another_shape(family: str):
    """A wide image after a tall one: the positions are resized from their own grid, and the mask follows."""
    model = build(family)
    before = TokenBackbone(model)
    name = before.tower.positions
    learned = None if name is None else before.tower.get_parameter(name).detach().clone()
    backbone = TokenBackbone(modulate(model), image_size=(16, 48))
    assert backbone.grid == (2, 6)
    images = torch.randn(1, 3, 16, 48)
    left = torch.zeros(1, 16, 48, dtype=torch.bool)
    left[..., :24] = True
    assert backbone(images, left)[0].shape == (1, 12, backbone.dim)
    assert not torch.equal(backbone(images, left)[0], backbone(images, ~left)[0])
    if name is not None:
        prefix = backbone.tower.position_prefix
        expected = resize_positions(learned.flatten(0, -2), before.grid, (2, 6), prefix_tokens=prefix)
        torch.testing.assert_close(backbone.tower.get_parameter(name).flatten(0, -2), expected)
        assert backbone.tower.get_parameter(name).requires_grad


@pytest.mark.parametrize("family", SIZED)
def test_a_checkpoint_of_tall_images_loads_for_wide_ones(family: str):
    """16 x 8 patches into 8 x 16: as many tokens, so that nothing but the grid tells them apart."""
    cameras = 3 if family in WITH_CLASS_TOKEN else None
    tall = TokenBackbone(modulate(build(family), alpha=0.4), image_size=(64, 32), num_cameras=cameras)
    wide = TokenBackbone(modulate(build(family)), image_size=(32, 64), num_cameras=cameras)
    saved = nn.ModuleDict({"backbone": tall}).state_dict()
    nn.ModuleDict({"backbone": wide}).load_state_dict(saved, strict=True)
    again = TokenBackbone(build(family), image_size=(64, 32), num_cameras=cameras)
    again = TokenBackbone(modulate(again.tower.model), num_cameras=cameras, image_size=(32, 64))
    assert wide.position_grid.tolist() == [4, 8]
    assert saved["backbone.position_grid"].tolist() == [8, 4]
    images = torch.randn(1, 3, 32, 64)
    torch.testing.assert_close(wide(images), again(images))
    if wide.tower.positions is not None:
        transposed = saved[f"backbone.tower.{wide.tower.positions}"]
        assert not torch.allclose(wide.tower.get_parameter(wide.tower.positions), transposed)
    tall.load_state_dict(wide.state_dict(), strict=True)  # the way back, as root
    assert tall.position_grid.tolist() == [8, 4]


def test_masks_become_tokens_with_the_threshold():
    model = modulate(build("timm `VisionTransformer`, 4 registers"))
    images, mask = torch.randn(1, 3, 32, 16), torch.zeros(1, 64, 32, dtype=torch.bool)
    mask[:, :6, :16] = True  # 37.5 % of the first patch, at twice the resolution
    for threshold in (0.3, 0.5):
        tokens = token_foreground(mask, (4, 2), threshold=threshold, prefix_tokens=5)
        expected = model.forward_features(images, attn_mask=tokens)[:, 5:]
        torch.testing.assert_close(TokenBackbone(model, threshold=threshold)(images, mask)[0], expected)
    assert tokens.sum() == 5


def test_one_channel_is_repeated():
    backbone = TokenBackbone(openai())
    thermal = torch.randn(2, 1, 32, 16)
    for actual, expected in zip(backbone(thermal), backbone(thermal.repeat(1, 3, 1, 1)), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.parametrize("family", WITH_CLASS_TOKEN)
def test_cameras(family: str):
    backbone = TokenBackbone(build(family), num_cameras=3, camera_scale=2.0)
    images = images_of(backbone, 1).expand(4, -1, -1, -1)
    without = TokenBackbone(backbone.tower.model)(images)
    for actual, expected in zip(backbone(images, cameras=torch.tensor([0, 1, 2, 3])), without, strict=True):
        torch.testing.assert_close(actual, expected)  # it starts at 0
    nn.init.normal_(backbone.camera_embedding)
    patches, _ = backbone(images, cameras=torch.tensor([0, 1, 3, -1]))
    assert not torch.allclose(patches[0], patches[1])
    torch.testing.assert_close(patches[2:], backbone(images)[0][:2])  # unknown ones: the mean, as without cameras
    with torch.no_grad():
        backbone.camera_embedding[:] = backbone.camera_embedding.mean(dim=0)
    torch.testing.assert_close(patches[2:], backbone(images, cameras=torch.tensor([0, 0, 1, 2]))[0][:2])
    for dtype in (torch.int8, torch.int32):
        cameras = torch.tensor([0, 1, 2, 99])
        assert torch.equal(backbone(images, cameras=cameras.to(dtype))[0], backbone(images, cameras=cameras)[0])
    stacked = backbone(images[:, None].expand(-1, 2, -1, -1, -1), cameras=torch.tensor([0, 1, 2, 0]))[0]
    assert stacked.shape[:2] == (4, 2)


@pytest.mark.parametrize(("place", "count"), [("class", 1), ("all", None)])
def test_a_camera_is_added_to_the_tokens_that_enter_the_first_block(place, count):
    model = openai()
    backbone = TokenBackbone(model, num_cameras=2, camera_scale=0.5, camera_tokens=place)
    nn.init.normal_(backbone.camera_embedding)
    images = images_of(backbone)
    tokens = model._embeds(images)
    tokens[:, :count] += 0.5 * backbone.camera_embedding[[1, 0], None]
    expected = model.ln_post(model.transformer(tokens))
    patches, global_token = backbone(images, cameras=torch.tensor([1, 0]))
    torch.testing.assert_close(torch.cat([global_token[:, None], patches], dim=1), expected)
    backbone(images, cameras=torch.tensor([1, 1]))[1].sum().backward()
    assert backbone.camera_embedding.grad[0].eq(0).all()


def test_normalisation_constants_follow_the_model():
    assert TokenBackbone(openai()).mean == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    tower = openai()
    tower.image_mean, tower.image_std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)  # as create_model leaves them
    assert (TokenBackbone(tower).mean, TokenBackbone(tower).std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert TokenBackbone(timm_vit("vit_small_patch16_dinov3")).mean == (0.485, 0.456, 0.406)
    assert TokenBackbone(transformers_vit("Dinov2Model", "Dinov2Config")).std == (0.229, 0.224, 0.225)
    assert TokenBackbone(transformers_vit("SiglipVisionModel", "SiglipVisionConfig")).mean == (0.5, 0.5, 0.5)


def test_stmi_stands_on_it():
    from examples.stmi.model import STMI
    from examples.towers.pretrained import PretrainedBackbone
    from stmi_layers.training import Batch

    backbone = TokenBackbone(modulate(open_clip_vit()), projected=True)
    model = STMI(PretrainedBackbone(backbone), 2, num_heads=4).eval()
    images, masks = example(backbone.tower.model)
    empty = dict.fromkeys(("present", "texts"))
    numbers = dict.fromkeys(("labels", "cameras", "views", "scenes", "indices"), torch.arange(2))
    batch = Batch(images=images, masks=masks, has_text=torch.zeros(2, dtype=torch.bool), **empty, **numbers)
    features = model(batch).features
    assert features["G"].shape == (2, 2 * backbone.dim)
    assert not torch.equal(features["U"], model(batch._replace(masks=None)).features["U"])


def test_unpooled_models_give_their_class_token():
    model = timm_vit("vit_tiny_patch16_224", global_pool="").eval()
    images = torch.randn(1, 3, 32, 16)
    torch.testing.assert_close(TokenBackbone(model)(images)[1], model.forward_features(images)[:, 0])


def test_what_does_not_fit_is_refused():
    backbone = TokenBackbone(openai())
    images = images_of(backbone)
    with pytest.raises(ValueError, match=r"\(32, 16\) that TokenBackbone was built for; received \(16, 32\)"):
        backbone(images.transpose(-2, -1))
    with pytest.raises(ValueError, match="1 or 3 channels; received 2"):
        backbone(images[:, :2])
    with pytest.raises(ValueError, match=r"foreground needs a modulated model: call modulate\(model\)"):
        backbone(images, torch.ones(2, 32, 16).bool())
    with pytest.raises(ValueError, match="build TokenBackbone with num_cameras="):
        backbone(images, cameras=torch.tensor([0, 1]))
    shapes = r"received foreground \(2, 1, 32, 16\) with images \(2, 3, 32, 16\)"
    with pytest.raises(ValueError, match=f"foreground must have no axis for modalities .* {shapes}"):
        TokenBackbone(modulate(openai()))(images, torch.ones(2, 1, 32, 16).bool())
    for size in ((30, 16), (0, 16)):
        with pytest.raises(ValueError, match=re.escape(f"multiples of the patch, (8, 8); received {size}")):
            TokenBackbone(openai(), image_size=size)
    for size in (64, (64,), (64.0, 32.0), torch.tensor([64, 32])):
        with pytest.raises(ValueError, match=re.escape(f"image_size must be (height, width); received {size}")):
            TokenBackbone(openai(), image_size=size)
    for threshold in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match=f"threshold must be above 0 and at most 1; received {threshold}"):
            TokenBackbone(openai(), threshold=threshold)
    with pytest.raises(ValueError, match="num_cameras must be at least 1; received 0"):
        TokenBackbone(openai(), num_cameras=0)
    with pytest.raises(ValueError, match="class token, which takes the camera embedding"):
        TokenBackbone(build("timm SigLIP"), num_cameras=2)
    with pytest.raises(TypeError, match=r"TokenBackbone knows no vision transformer in .*Linear"):
        TokenBackbone(nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"pass the VisionTransformer inside it"):
        TokenBackbone(nn.Sequential(openai()))


def test_projection_and_pooling_are_checked():
    tower = openai()
    tower.proj = None
    for model in (tower, build("timm EVA-02"), build("transformers `CLIPVisionModel`")):
        with pytest.raises(ValueError, match="projected=True needs"):
            TokenBackbone(model, projected=True)
    with pytest.raises(ValueError, match="without attentional pooling"):
        TokenBackbone(openai(attentional_pool=True, attn_pooler_heads=2))


def test_convolutional_towers_are_no_vision_transformers():
    tower = __import__("open_clip").timm_model.TimmModel("test_resnet", embed_dim=16)
    with pytest.raises(TypeError, match="knows no vision transformer"):
        TokenBackbone(tower)


def test_the_gradient_of_a_camera_counts_more_than_256_samples_in_half_precision():
    """On a CPU, torch's gradient of an indexed row stops growing there in bfloat16."""
    backbone = TokenBackbone(build("timm `VisionTransformer`"), num_cameras=2)
    images = example(backbone.tower.model)[0][:1, 0].expand(600, -1, -1, -1)
    gradients = []
    for dtype in (torch.float32, torch.bfloat16):
        twin = copy.deepcopy(backbone).to(dtype)
        for parameter in twin.tower.parameters():
            parameter.requires_grad_(False)
        twin(images.to(dtype), cameras=torch.zeros(600, dtype=torch.int64))[1].float().square().sum().backward()
        gradients.append(twin.camera_embedding.grad[0].float())
    exact, seen = gradients
    assert (seen - exact).norm() < 0.1 * exact.norm()


@every_family
def test_further_tokens_enter_behind_the_patches_and_come_out_there(family):
    backbone = TokenBackbone(modulate(build(family)))
    images = images_of(backbone)
    extra = torch.randn(2, 3, backbone.tower.width)
    if any(rotary in family for rotary in ("EVA-02", "DINOv3", "rotary")):
        with pytest.raises(ValueError, match="extra needs a model with learned positions"):
            backbone(images, extra=extra)
        return
    patches = backbone(images, extra=extra)[0]
    count = backbone.grid[0] * backbone.grid[1]
    assert patches.shape == (2, count + 3, backbone.dim)
    plain, _ = backbone(images)
    assert not torch.allclose(patches[:, :count], plain)
    swapped = backbone(images, extra=extra.flip(1))[0]
    torch.testing.assert_close(swapped[:, count:], patches[:, count:].flip(1), rtol=1e-4, atol=1e-5)
    masks = torch.ones(2, *backbone.image_size, dtype=torch.bool)
    assert backbone(images, masks, extra=extra)[0].shape == patches.shape
    stacked = backbone(torch.stack([images, images], dim=1), extra=torch.stack([extra, extra.flip(1)], dim=1))
    torch.testing.assert_close(stacked[0][:, 1], swapped, rtol=1e-4, atol=1e-5)


def test_a_further_token_of_a_clip_is_normed_as_the_embeddings_are_and_gets_the_embedding_of_the_camera():
    model = openai()
    backbone = TokenBackbone(model, num_cameras=2)
    nn.init.normal_(backbone.camera_embedding)
    images, extra, cameras = images_of(backbone), torch.randn(2, 1, backbone.tower.width), torch.tensor([0, 1])
    expected = backbone(images, cameras=cameras, extra=extra)
    tokens = torch.cat([model._embeds(images), model.ln_pre(extra)], dim=1)
    tokens[:, [0, -1]] += backbone.camera_embedding[cameras][:, None]
    normed = model.ln_post(model.transformer(tokens))
    torch.testing.assert_close(expected[0], normed[:, 1:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(expected[1], normed[:, 0], rtol=1e-4, atol=1e-5)
