"""Adapters and prompts in the vision transformers of every library, compared with arrays of the released code."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples.mambapro.released import released_state
from stmi_layers import token_foreground
from stmi_layers.backbones import TokenBackbone, adapt, load_weights, modulate, parameter_groups, unadapt, unmodulate
from stmi_layers.backbones.adapted import added_names
from stmi_layers.backbones.known_models import load_family
from tests.backbones.backbone_checks import FAMILIES, build, example, gradients, open_clip_vit, strengths
from vectors import assert_equal, every, load, meta, part

TOWERS = [family for family in FAMILIES if not family.startswith("`nn")]
every_tower = pytest.mark.parametrize("family", TOWERS)
ROTARY = ("EVA", "DINOv3", "rotary")


def adapted(family: str, **options) -> nn.Module:
    """With two modalities' prompts and every new parameter at random."""
    model = adapt(build(family), **({"num_modalities": 2, "num_prompts": 3, "zero_init": False} | options))
    torch.manual_seed(1)
    names = added_names(model)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in names:
                parameter.normal_(std=0.2)
    return model.eval()


def blocks_of(model: nn.Module) -> list[Any]:
    return list(load_family(model).blocks(model))


def norm_of(block: Any) -> nn.Module:
    """The norm before the feed-forward network, whose input the adapter reads."""
    return next(getattr(block, name) for name in ("ln_2", "norm2", "layer_norm2") if hasattr(block, name))


class Calls:
    """What the first block of a model receives, and what the last one returns."""

    def __init__(self, model: nn.Module) -> None:
        blocks = blocks_of(model)
        self.inputs: list[tuple[tuple, dict]] = []
        for block in blocks:
            block.register_forward_pre_hook(
                lambda _, args, kwargs: self.inputs.append((args, kwargs)), with_kwargs=True
            )
        blocks[-1].register_forward_hook(lambda _module, _args, output: setattr(self, "output", output))


def expected_tokens(family: str, model: nn.Module, calls: Calls, mask: Tensor | None) -> Tensor:
    """Block for block with the original code, image after image, the prompts at the end, as the release has them.

    Rotary embeddings know the patches by their place behind the prefix: there the prompts stand in front.
    """
    front = any(word in family for word in ROTARY)
    parts = [(block.adapter, block.prompts) for block in blocks_of(model)]
    plain = unadapt(copy.deepcopy(model))
    for module in plain.modules():  # those of `calls`
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    blocks, images = blocks_of(plain), calls.inputs[0][0][0]
    results = []
    for row in range(len(images)):
        tokens, carried, m = images[[row]], None, row % 2
        for index, (block, (adapter, prompts)) in enumerate(zip(blocks, parts, strict=True)):
            kwargs = {name: value for name, value in calls.inputs[index][1].items() if name == "rope"}
            slots = []
            if prompts is not None:
                for k in range(2):
                    own = prompts.prompts[[k]] if carried is None else prompts.prompts[[k]] + carried
                    own = own if carried is None else own + prompts.carry(carried)
                    slots.append(own if k == m else prompts.prompts[[k]] + prompts.foreign[k](prompts.prompts[[k]]))
            count = sum(slot.shape[1] for slot in slots)
            sequence = torch.cat([*slots, tokens] if front else [tokens, *slots], dim=1)
            if mask is not None:
                true = torch.ones(1, count, dtype=torch.bool)
                word = "foreground" if "transformers" in family else "attn_mask"
                kwargs[word] = torch.cat([true, mask[[row]]] if front else [mask[[row]], true], dim=1)
            attention = getattr(block, "attn", None)
            if front:
                attention.num_prefix_tokens += count
            middle: list[Tensor] = []
            handle = norm_of(block).register_forward_pre_hook(lambda _, args, middle=middle: middle.append(args[0]))
            output = block(sequence, **({"attention_mask": None} if "transformers" in family else {}), **kwargs)
            handle.remove()
            if front:
                attention.num_prefix_tokens -= count
            output = output if adapter is None else output + adapter(middle[0])
            tokens, found = (
                (output[:, count:], output[:, :count]) if front else output.split([tokens.shape[1], count], 1)
            )
            carried = torch.stack(found.chunk(2, dim=1)).mean(dim=0) if slots else None
        results.append(tokens)
    return torch.cat(results)


@every_tower
@pytest.mark.parametrize("options", [{}, {"num_modalities": None}, {"adapters": False}], ids=["both", "pfa", "srp"])
def test_blocks_match_the_equations(family, options):
    model = adapted(family, **options).double()
    images, _ = example(model)
    backbone, calls = TokenBackbone(model), Calls(model)
    with torch.no_grad():
        backbone(images.double())
        torch.testing.assert_close(calls.output, expected_tokens(family, model, calls, None))


@every_tower
@pytest.mark.parametrize("first", ["adapt", "modulate"])
def test_masks_take_prompts_for_foreground(family, first):
    if first == "adapt":
        model = modulate(adapted(family))
    else:
        model = modulate(build(family))
        torch.manual_seed(1)
        adapt(model, num_modalities=2, num_prompts=3, zero_init=False)
        model.load_state_dict(modulate(adapted(family)).state_dict())
    images, masks = example(model)
    model.double()
    with torch.no_grad():
        for strength in strengths(model):
            strength.fill_(0.6)
        backbone, calls = TokenBackbone(model), Calls(model)
        backbone(images.double(), masks)
        foreground = token_foreground(masks.flatten(0, 1), backbone.grid, prefix_tokens=backbone.prefix_tokens)
        expected = expected_tokens(family, model, calls, foreground)
    torch.testing.assert_close(calls.output, expected)


@every_tower
@torch.no_grad()
def test_adapters_start_as_nothing(family):
    model = build(family)
    images, masks = example(model)
    before = TokenBackbone(model)(images)
    adapt(model, freeze=False)  # freezing alone lets torch take other kernels
    after = TokenBackbone(model)(images)
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))
    modulate(model)
    masked = TokenBackbone(model)(images, masks)
    plain = modulate(build(family))
    torch.testing.assert_close(masked, TokenBackbone(plain)(images, masks))


@every_tower
def test_checkpoints_names_and_the_way_back(family):
    original = build(family)
    weights, classes = original.state_dict(), [type(module) for module in original.modules()]
    model = adapted(family)
    added = set(model.state_dict()) - set(weights)
    assert added == added_names(model)
    kept = {name: value.clone() for name, value in model.state_dict().items() if name in added}
    model.load_state_dict(weights, strict=True)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in kept.items())
    twin = adapt(build(family), num_modalities=2, num_prompts=3)
    twin.load_state_dict(model.state_dict(), strict=True)
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in kept.items())
    incomplete = {name: value for name, value in model.state_dict().items() if name != sorted(added)[0]}
    with pytest.raises(RuntimeError, match="Missing key"):
        twin.load_state_dict(incomplete)
    unadapt(model)
    assert [type(module) for module in model.modules()] == classes
    assert list(model.state_dict()) == list(weights)
    images, _ = example(model)
    with torch.no_grad():
        after, before = TokenBackbone(model)(images), TokenBackbone(original.requires_grad_(False))(images)
    assert all(torch.equal(*pair) for pair in zip(after, before, strict=True))


@every_tower
def test_copies_and_the_way_back_in_either_order(family):
    model = modulate(adapted(family))
    backbone, (images, masks) = TokenBackbone(model), example(model)
    expected = backbone(images, masks)
    for twin in (copy.deepcopy(backbone), pickle.loads(pickle.dumps(backbone))):
        torch.testing.assert_close(twin(images, masks), expected, rtol=0, atol=0)
    one, other = unadapt(unmodulate(copy.deepcopy(model))), unmodulate(unadapt(copy.deepcopy(model)))
    classes = [type(module) for module in build(family).modules()]
    assert [type(module) for module in one.modules()] == [type(module) for module in other.modules()] == classes


@every_tower
def test_what_is_added_learns_and_nothing_else(family):
    model = adapted(family).train()
    images, _ = example(model)
    found = gradients(model, TokenBackbone(model)(images))
    names = added_names(model)
    assert all(found[name] is not None and found[name].any() and found[name].isfinite().all() for name in names)
    assert all(gradient is None for name, gradient in found.items() if name not in names)


def test_strengths_stay_trainable_and_freeze_is_a_choice():
    model = adapt(modulate(open_clip_vit()), num_modalities=2)
    assert all(strength.requires_grad for strength in strengths(model))
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert frozen == set(open_clip_vit().state_dict())
    assert all(parameter.requires_grad for parameter in adapt(open_clip_vit(), freeze=False).parameters())


@every_tower
def test_checkpointing_changes_no_gradient(family):
    model = modulate(adapted(family)).train()
    backbone, (images, masks) = TokenBackbone(model), example(model)
    expected = gradients(model, backbone(images, masks))
    if hasattr(model, "activation_checkpointing_enable"):
        kinds = [{"activation_checkpointing_kwargs": {"use_reentrant": reentrant}} for reentrant in (False, True)]
        switch = model.activation_checkpointing_enable
    else:
        kinds, switch = [{}], model.set_grad_checkpointing
    for options in kinds:
        if options.get("activation_checkpointing_kwargs", {}).get("use_reentrant"):
            images.requires_grad_()  # reentrant checkpoints need an input that does
        switch(**options)
        torch.testing.assert_close(gradients(model, backbone(images, masks)), expected)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("family", [TOWERS[0], "timm EVA-02", "transformers `CLIPVisionModel`"])
def test_compile_and_export(family):
    model = modulate(adapted(family))
    backbone, inputs, others = TokenBackbone(model), example(model), example(model, batch=3)
    torch._dynamo.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*inputs), backbone(*inputs))
    shapes = tuple({0: torch.export.Dim("batch", min=2, max=4096)} for _ in inputs)
    program = torch.export.export(backbone, inputs, dynamic_shapes=shapes)
    torch.testing.assert_close(program.module()(*others), backbone(*others))


def test_modalities_do_not_meet_and_order_tells_them():
    model = adapted(TOWERS[0])
    images, _ = example(model)
    backbone = TokenBackbone(model)
    patches, _ = backbone(images)
    changed = images.clone()
    changed[:, 1] = torch.nan
    assert torch.equal(backbone(changed)[0][:, 0], patches[:, 0])
    assert (backbone(images.flip(1))[0].flip(1) - patches).abs().max() > 1e-3
    torch.testing.assert_close(backbone(images[:1])[0], patches[:1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_dtypes(dtype):
    model = adapt(open_clip_vit().to(dtype), num_modalities=2, zero_init=False)
    assert all(parameter.dtype == dtype for parameter in model.parameters())
    images, _ = example(model)
    assert TokenBackbone(model)(images.to(dtype))[0].dtype == dtype
    wide = adapt(open_clip_vit(), num_modalities=2, zero_init=False)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert TokenBackbone(wide)(images)[0].isfinite().all()


def test_groups_of_parameters_and_weight_files(tmp_path: Path):
    torch.save(open_clip_vit().state_dict(), tmp_path / "weights.pt")
    model = modulate(adapt(open_clip_vit(), num_modalities=2))
    report = load_weights(model, tmp_path / "weights.pt", old_grid=(4, 2))
    assert set(report.missing) == added_names(model) | {
        name for name in model.state_dict() if name[-5:] in ("alpha", ".beta")
    }
    groups = parameter_groups(nn.Sequential(TokenBackbone(model), nn.Linear(4, 4)))
    named = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {kind: {named.get(id(parameter)) for parameter in group} for kind, group in groups.items()}
    assert found["backbone"] == set(open_clip_vit().state_dict())
    assert found["rest"] == added_names(model) | {None}  # the linear layer has no name in the model


def released_blocks(path: Path, adapters: bool = True, prompts: bool = True) -> list[Any]:
    """A first block and a later one with the released parameters."""
    from open_clip.transformer import QuickGELU, VisionTransformer

    state, settings = part(load(path, torch.float64), "param."), meta(path)
    width, heads, count = settings["D"], settings["heads"], len(state["adapter_prompt_rgb"])
    visual = VisionTransformer((16, 16), 8, width, 3, heads, 4.0, act_layer=QuickGELU).double()
    added = {"num_modalities": 3 if prompts else None, "num_prompts": count}
    blocks = list(adapt(visual, adapters=adapters, freeze=False, zero_init=False, **added).transformer.resblocks)
    for index, block in enumerate(blocks[:2]):
        ours = released_state({f"resblocks.{index}.{name}": value for name, value in state.items()})
        ours = {name.removeprefix(f"resblocks.{index}."): value for name, value in ours.items()}
        parts = (("adapter.", adapters), ("prompts.", prompts))
        unused = tuple(part for part, wanted in parts if not wanted)
        block.load_state_dict({name: value for name, value in ours.items() if not name.startswith(unused or ("-",))})
    return blocks[:2]


@pytest.mark.parametrize("mode", ["eval", "train"])
@every("mambapro_pfa_*.npz")
def test_released_parallel_adapter(path, mode):
    arrays = load(path, torch.float64)
    block = released_blocks(path, prompts=False)[1].train(mode == "train")
    tokens = arrays["in.tokens"].requires_grad_()
    output = block(tokens.transpose(0, 1)).transpose(0, 1)
    assert_equal(output, arrays[f"{mode}.out.out"])
    alone = block.adapter(tokens)
    assert_equal(alone, arrays[f"{mode}.out.adapter_only"])
    loss = (output * arrays[f"{mode}.cot.out"]).sum() + (alone * arrays[f"{mode}.cot.adapter_only"]).sum()
    assert_equal(torch.autograd.grad(loss, tokens)[0], arrays[f"{mode}.grad.in.tokens"])


@pytest.mark.parametrize("kind", ["srp", "srp_pfa"])
@every("mambapro_srp_block_*.npz")
def test_released_prompts(path, kind):
    arrays = load(path, torch.float64)
    first, later = released_blocks(path, adapters=kind == "srp_pfa")
    for m, name in enumerate(("rgb", "nir", "tir")):
        for place, block in (("first", first), ("later", later)):
            prefix = f"eval.{kind}.{name}.{place}"
            tokens, carried = (arrays[f"in.{item}"].requires_grad_() for item in ("tokens", "last_prompt"))
            sequence = tokens if place == "first" else torch.cat([carried, tokens])
            rows = sequence.transpose(0, 1).repeat_interleave(3, dim=0)  # every image as one of each modality
            output = block(rows).unflatten(0, (-1, 3))[:, m].transpose(0, 1)
            results = {"prompt": output[: len(carried)], "out": output[len(carried) :]}
            for item, value in results.items():
                assert_equal(value, arrays[f"{prefix}.out.{item}"])
            loss = torch.stack(
                [(value * arrays[f"{prefix}.cot.{item}"]).sum() for item, value in results.items()]
            ).sum()
            leaves = {"tokens": tokens} if place == "first" else {"tokens": tokens, "last_prompt": carried}
            found = torch.autograd.grad(loss, list(leaves.values()))
            for item, gradient in zip(leaves, found, strict=True):
                assert_equal(gradient, arrays[f"{prefix}.grad.in.{item}"])


def test_refused():
    for options, message in (
        ({"num_modalities": 0}, "num_modalities must be at least 1; received 0"),
        ({"num_modalities": 2, "num_prompts": 0}, "num_prompts must be at least 1; received 0"),
        ({"hidden": 0}, "hidden must be at least 1; received 0"),
        ({"adapters": False}, "adapters=False needs prompts; received num_modalities=None"),
    ):
        with pytest.raises(ValueError, match=message):
            adapt(open_clip_vit(), **options)
    with pytest.raises(ValueError, match=r"model is adapted already; unadapt\(model\) first"):
        adapt(adapt(open_clip_vit()))
    with pytest.raises(ValueError, match=r"model must hold one vision transformer; received .*: adapt each of them"):
        adapt(nn.ModuleList([open_clip_vit(), open_clip_vit()]))
    with pytest.raises(TypeError, match=r"adapt knows no vision transformer in torch\.nn\.modules\.linear\.Linear"):
        adapt(nn.Linear(2, 2))
    model = open_clip_vit()
    model.transformer.resblocks[1].__class__ = type("Other", (type(model.transformer.resblocks[1]),), {})
    with pytest.raises(
        ValueError, match="block 1 is a Other; adapt knows CustomResidualAttentionBlock, ModulatedBlock, Res"
    ):
        adapt(model)


def test_inputs_refused():
    model = adapt(open_clip_vit(), num_modalities=2)
    backbone, block = TokenBackbone(model), model.transformer.resblocks[0]
    images, _ = example(model)
    with pytest.raises(ValueError, match="images must have the 2 modalities of the prompts; received 1"):
        backbone(images[:, 0])
    with pytest.raises(ValueError, match="images must have the 2 modalities of the prompts; received 4"):
        backbone(images.repeat(1, 2, 1, 1, 1))
    tokens = torch.randn(3, 9, 32)
    with pytest.raises(ValueError, match=r"batch must hold all 2 modalities of every sample, .*; received 3"):
        block(tokens)
    with pytest.raises(ValueError, match=r"must be a foreground mask, Bool \(batch, tokens\); received torch.float32"):
        block(tokens[:2], attn_mask=torch.zeros(9, 9))
    with pytest.raises(ValueError, match="k_x and v_x must be None in an adapted block"):
        block(tokens[:2], tokens[:2])
    layer = blocks_of(adapted("transformers `CLIPVisionModel`"))[0]
    with pytest.raises(ValueError, match="prompts cannot be combined with attention_mask"):
        layer(tokens[:2], torch.zeros(2, 1, 9, 9))
