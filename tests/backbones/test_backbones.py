"""`modulate` in every family: the promises of the docs' table, the options of Table 5, and refused arguments."""

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stmi_layers import SegmentationModulatedAttention, modulated_attention
from stmi_layers.backbones import TokenBackbone, modulate, parameter_groups, unmodulate
from stmi_layers.kernels.dispatch import Implementation, implementation_for
from tests.backbones.backbone_checks import (
    COLUMNS,
    FAMILIES,
    build,
    example,
    gradients,
    outcome,
    scalar,
    strengths,
    timm_vit,
    tokens_of,
)
from tests.backbones.backbone_table import rows

LIBRARIES = ("open_clip", "timm", "transformers")
SLOW = ("compile", "export", "ONNX")
CELLS = [(family, column) for family in FAMILIES for column in COLUMNS if column not in SLOW]
CELLS += [(f"{name} `VisionTransformer`", column) for name in ("open_clip", "timm") for column in SLOW[:2]]

every_family = pytest.mark.parametrize("family", FAMILIES)


def tiny() -> nn.Module:
    return build("timm `VisionTransformer`")


@pytest.fixture(autouse=True)
def _installed(request: pytest.FixtureRequest):
    """Skip a family whose library is not there; tests without one need timm."""
    family = getattr(request.node, "callspec", None) and request.node.callspec.params.get("family")
    for library in LIBRARIES:
        if library in (family or "timm"):
            pytest.importorskip("torchvision")
            pytest.importorskip(library)


@pytest.mark.parametrize(("family", "column"), CELLS)
def test_the_docs_say_what_the_checks_give(family: str, column: str):
    assert rows()[family][column] == outcome(family, column)


def test_the_docs_show_every_check_of_every_family():
    assert {family: list(cells) for family, cells in rows().items()} == {family: list(COLUMNS) for family in FAMILIES}


@every_family
def test_copies_behave_the_same(family: str):
    model = modulate(build(family), share="model")
    backbone, inputs = tokens_of(model), example(model)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        assert len(strengths(twin)) == 2  # still shared
        for actual, expected in zip(twin(*inputs), backbone(*inputs), strict=True):
            assert torch.equal(actual, expected)
    unmodulate(twin)
    assert len(strengths(model)) == 2


@every_family
def test_half_precision_and_autocast(family: str):
    model = modulate(build(family))
    (images, masks), backbone = example(model), tokens_of(model)
    expected = backbone(images, masks)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        outputs = backbone(images, masks)
    grads = gradients(model, tuple(output.float() for output in outputs))
    assert all(grads[name].isfinite().all() for name in grads if name.endswith(("alpha", "beta")))
    for actual, wanted in zip(outputs, expected, strict=True):
        assert (actual.float() - wanted).abs().mean() < 0.05 * wanted.abs().mean()
    half = modulate(unmodulate(model).bfloat16())
    assert {strength.dtype for strength in strengths(half)} == {torch.bfloat16}
    assert all(output.dtype == torch.bfloat16 for output in tokens_of(half)(images.bfloat16(), masks))


def test_distributed_data_parallel(tmp_path: Path):
    model = modulate(tiny())
    backbone, inputs = TokenBackbone(model), example(model)
    expected = gradients(model, backbone(*inputs))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    parallel = DistributedDataParallel(backbone)  # kept: its hooks end with it
    try:
        actual = gradients(model, parallel(*inputs))
    finally:
        del parallel  # the last to let go of a group of gloo may wait for ever
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize(
    ("options", "modulated", "shapes"),
    [
        ({}, {0, 1, 2, 3}, [(1,)] * 8),  # E
        ({"share": "model"}, {0, 1, 2, 3}, [(1,)] * 2),  # A
        ({"layers": "early"}, {0, 1}, [(1,)] * 4),  # B
        ({"layers": "late"}, {2, 3}, [(1,)] * 4),  # C
        ({"share": "head"}, {0, 1, 2, 3}, [(2,)] * 8),  # D
        ({"layers": (3, 0), "share": "model"}, {0, 3}, [(1,)] * 2),
    ],
)
def test_configurations_of_table_5(options: dict, modulated: set[int], shapes: list[tuple[int, ...]]):
    model = modulate(timm_vit("vit_tiny_patch16_224", depth=4), alpha=0.2, beta=0.3, **options)
    assert [tuple(strength.shape) for strength in strengths(model)] == shapes
    assert {index for index, block in enumerate(model.blocks) if block.attn.alpha is not None} == modulated
    for index in modulated:
        assert model.blocks[index].attn.alpha.tolist() == pytest.approx([0.2] * shapes[0][0])
        assert model.blocks[index].attn.beta.tolist() == pytest.approx([0.3] * shapes[0][0])


@every_family
def test_a_block_left_out_leaves_the_mask_out(family: str):
    late, all_of_it = (modulate(build(family), layers=layers) for layers in ("late", "all"))
    early = strengths(all_of_it)[: len(strengths(late))]
    for strength in early:
        nn.init.zeros_(strength)
    inputs = example(late)
    torch.testing.assert_close(tokens_of(late)(*inputs), tokens_of(all_of_it)(*inputs), rtol=1e-4, atol=1e-5)


def test_perturbation_acts_in_training_only():
    model = modulate(tiny(), perturbation=1.0)
    backbone, (images, masks) = TokenBackbone(model), example(model)
    everywhere = torch.ones_like(masks)
    assert not torch.equal(backbone(images, masks)[0], backbone(images, everywhere)[0])
    backbone.train()
    assert torch.equal(backbone(images, masks)[0], backbone(images, everywhere)[0])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_multihead_attention_alone(batch_first: bool, bias: bool):
    attention = modulate(nn.MultiheadAttention(8, 2, batch_first=batch_first, bias=bias))
    twin = SegmentationModulatedAttention(8, 2, qkv_bias=bias)
    if not bias:
        nn.init.zeros_(twin.out_proj.bias)
    twin.load_state_dict(attention.state_dict(), strict=bias)
    tokens, foreground = torch.randn(3, 5, 8), torch.rand(3, 5) > 0.5
    given = tokens if batch_first else tokens.transpose(0, 1)
    output, weights = attention(given, given, given, foreground=foreground, average_attn_weights=False)
    torch.testing.assert_close(output if batch_first else output.transpose(0, 1), twin(tokens, foreground))
    # The weights are those that the output was made with.
    projected = F.linear(tokens, attention.in_proj_weight, attention.in_proj_bias).unflatten(-1, (3, 2, 4))
    value = projected[:, :, 2].transpose(1, 2)
    attended = (weights @ value).transpose(1, 2).flatten(2)
    torch.testing.assert_close(attention.out_proj(attended), twin(tokens, foreground))
    mean = attention(given, given, given, foreground=foreground)[1]
    torch.testing.assert_close(mean, weights.mean(dim=1))
    assert attention(given, given, given, foreground=foreground, need_weights=False)[1] is None
    # Without a mask cross-attention, masks and weights are those of the original.
    other, causal = torch.randn_like(given), torch.ones(given.shape[0], given.shape[0]).triu(1).bool()
    arguments = (given, other, other, None, True, causal if not batch_first else None)
    expected = unmodulate(copy.deepcopy(attention))(*arguments)
    assert all(torch.equal(*pair) for pair in zip(attention(*arguments), expected, strict=True))


def test_libraries_take_the_mask_themselves():
    family = "transformers `CLIPVisionModel`"
    pytest.importorskip("transformers")
    pytest.importorskip("open_clip")
    for name in ("open_clip `VisionTransformer`", "timm `VisionTransformer`", family):
        model = modulate(build(name))
        backbone, (images, masks) = TokenBackbone(model), example(model)
        image, foreground = images[:, 0], backbone._foreground(masks[:, :1], 1)
        if name == family:
            tokens = model.post_layernorm(model(image, foreground=foreground).last_hidden_state)
        elif name.startswith("timm"):
            tokens = model.forward_features(image, attn_mask=foreground)
        else:
            tokens = model.ln_post(model.transformer(model._embeds(image), attn_mask=foreground))
        torch.testing.assert_close(backbone(image, masks[:, 0])[0], tokens[:, 1:])


def test_modulate_finds_the_vision_tower_and_nothing_else():
    pytest.importorskip("open_clip")
    from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg

    vision = CLIPVisionCfg(layers=2, width=32, head_width=16, patch_size=8, image_size=(32, 16))
    clip = CLIP(16, vision, CLIPTextCfg(context_length=8, vocab_size=32, width=16, heads=2, layers=1))
    modulate(clip)
    assert len(strengths(clip.visual)) == len(strengths(clip)) == 4
    whole = nn.ModuleDict({"clip": clip, "head": nn.Linear(16, 4)})
    groups = parameter_groups(whole)
    assert {id(p) for p in groups["strengths"]} == {id(p) for p in strengths(clip)}
    assert {id(p) for p in groups["backbone"]} == {id(p) for p in clip.visual.parameters()} - {
        id(p) for p in groups["strengths"]
    }
    everything = [id(p) for group in groups.values() for p in group]
    assert sorted(everything) == sorted(id(p) for p in whole.parameters())


def test_parameter_groups_around_any_backbone():
    backbone = TokenBackbone(modulate(tiny(), share="model"), num_cameras=2)
    groups = parameter_groups(nn.Sequential(backbone, nn.Linear(32, 4)))
    assert {name: len(group) for name, group in groups.items()} == {
        "backbone": sum(1 for _ in tiny().parameters()),
        "strengths": 2,
        "rest": 3,
    }
    own = nn.ModuleDict({"vit": SegmentationModulatedAttention(8, 2), "head": nn.Linear(8, 2)})
    sizes = {name: len(group) for name, group in parameter_groups(own, backbone=own["vit"]).items()}
    assert sizes == {"backbone": 4, "strengths": 2, "rest": 2}
    assert {name: len(group) for name, group in parameter_groups(tiny()).items()}["strengths"] == 0


def test_a_tower_under_two_names_is_one():
    vit = tiny()
    model = nn.ModuleDict({"first": vit, "second": nn.Sequential(vit)})
    assert len(strengths(modulate(model))) == 4
    everything = [id(parameter) for group in parameter_groups(model).values() for parameter in group]
    assert len(everything) == len(set(everything)) == len(list(vit.parameters()))


@pytest.mark.parametrize("share", ["layer", "head"])
def test_tiles_and_dense_agree_inside_a_model(share: str):
    """Gradients by autograd, which takes the tiles on a CPU, and by `torch.func`, which takes the dense form."""
    model = modulate(build("timm `VisionTransformer`, 4 registers"), alpha=0.3, beta=0.6, share=share)
    backbone, inputs = TokenBackbone(model), example(model)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return scalar(torch.func.functional_call(backbone, parameters, inputs))

    dense = torch.func.grad(loss)(dict(backbone.named_parameters()))
    tiled = gradients(backbone, backbone(*inputs))
    torch.testing.assert_close(tiled, dense, rtol=1e-4, atol=1e-4)


@every_family
def test_a_named_form_of_attention_runs_in_every_block(family: str, monkeypatch: pytest.MonkeyPatch):
    chosen: list[str] = []

    def record(name: Implementation, *tensors: Tensor):
        chosen.append(name)
        return implementation_for(name, *tensors)

    monkeypatch.setattr("stmi_layers.attention.implementation_for", record)
    model = modulate(build(family), implementation="dense")
    tokens_of(model)(*example(model))
    assert chosen == ["dense"] * (len(strengths(model)) // 2)
    with pytest.raises(ValueError, match=r"implementation must be one of .*; received 'dens'"):
        modulate(unmodulate(model), implementation="dens")  # pyright: ignore[reportArgumentType]


def test_other_masks_reach_the_original():
    """A float mask or one with four axes is an attention mask, as ever."""
    block, tokens = tiny().blocks[0], torch.randn(2, 9, 32)
    for mask in (torch.randn(9, 9), torch.rand(2, 1, 9, 9) > 0.3):
        expected = block(tokens, attn_mask=mask)
        assert torch.equal(modulate(nn.Sequential(tiny()))[0].blocks[0](tokens, attn_mask=mask), expected)


def test_grouped_queries_and_gates_of_timm():
    """What no model of the table has: fewer key heads than query heads, and a gate behind the attention."""
    from timm.layers.attention import AttentionRope

    from stmi_layers.backbones._timm import ModulatedAttentionRope

    attention = AttentionRope(8, 4, qkv_fused=False, num_kv_heads=2, gated=True, norm_layer=nn.LayerNorm, qk_norm=True)
    attention.register_parameter("alpha", nn.Parameter(torch.full((4,), 0.3)))
    attention.register_parameter("beta", nn.Parameter(torch.full((4,), 0.6)))
    attention.perturbation = nn.Identity()
    attention.__class__ = ModulatedAttentionRope
    assert attention.gate is not None
    tokens, foreground = torch.randn(2, 5, 8), torch.rand(2, 5) > 0.5

    def heads(layer: nn.Linear, norm: nn.Module, groups: int) -> Tensor:
        split = layer(tokens).unflatten(-1, (-1, 2)).transpose(1, 2)
        return torch.stack([norm(split[:, head // groups]) for head in range(4)], dim=1)

    query, key = heads(attention.q_proj, attention.q_norm, 1), heads(attention.k_proj, attention.k_norm, 2)
    value = heads(attention.v_proj, nn.Identity(), 2)
    attended = modulated_attention(query, key, value, foreground, attention.alpha, attention.beta)
    gated = attended.transpose(1, 2).flatten(2) * attention.gate(tokens).sigmoid()
    torch.testing.assert_close(attention(tokens, attn_mask=foreground), attention.proj(gated))


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch):
    model = tiny()
    monkeypatch.setitem(sys.modules, "stmi_layers.backbones._timm", None)
    with pytest.raises(ImportError, match=re.escape("From a clone: pip install '.[timm]'")):
        modulate(model)


def test_importing_needs_no_library():
    code = "import sys, stmi_layers.backbones; print([name for name in sys.argv[1:] if name in sys.modules])"
    arguments = [sys.executable, "-c", code, *LIBRARIES, "torchvision"]
    assert subprocess.run(arguments, capture_output=True, text=True, check=True).stdout == "[]\n"
