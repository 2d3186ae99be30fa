"""Strengths and names in files of other libraries: shared pairs, wrappers, several models in one file, FSDP2."""

import copy
import pickle
import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from examples.optional import import_torchvision
from processes import in_processes
from stmi_layers.backbones import TokenBackbone, load_weights, modulate, unmodulate

import_torchvision()  # here, too: further processes import this file without conftest.py
timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")

TINY = {"img_size": (32, 32), "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 0}


def build(**options: Any) -> nn.Module:
    return modulate(timm.create_model("vit_base_patch16_224", pretrained=False, **TINY), **options)


def alphas(model: nn.Module) -> list[float]:
    return [round(value.item(), 4) for name, value in model.named_parameters(remove_duplicate=False) if "alpha" in name]


def test_a_shared_pair_that_is_stored_once_loads_by_safetensors(tmp_path: Path):
    safetensors.save_model(TokenBackbone(build(share="model", alpha=0.37)), str(tmp_path / "a.safetensors"))
    twin = TokenBackbone(build(share="model"))
    safetensors.load_model(twin, str(tmp_path / "a.safetensors"))
    assert alphas(twin) == [0.37] * 4


@pytest.mark.parametrize("twin", ["as built", "copied", "pickled", "modulated again"])
def test_a_shared_pair_that_is_stored_once_is_no_checkpoint_of_a_pair_per_layer(tmp_path: Path, twin):
    path = tmp_path / "a.safetensors"
    safetensors.save_model(build(share="model", alpha=0.37), str(path))
    model = build()
    if twin == "modulated again":
        model = modulate(unmodulate(model))
    elif twin != "as built":
        model = copy.deepcopy(model) if twin == "copied" else pickle.loads(pickle.dumps(model))
    weights = safetensors.load_file(path)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "blocks\.1\.attn\.alpha"'):
        model.load_state_dict(weights)
    missing = model.load_state_dict(weights, strict=False).missing_keys
    assert missing == [f"blocks.{block}.attn.{name}" for block in (1, 2, 3) for name in ("alpha", "beta")]
    with pytest.raises(ValueError, match=r"holds strengths, but not blocks\.1\.attn\.alpha, .* and 1 more: modulate"):
        load_weights(build(), path)


@pytest.mark.parametrize("kept", [0, 2, None])
def test_load_weights_reads_a_shared_pair_under_any_of_its_names(tmp_path: Path, kept):
    state = build(share="model", alpha=0.37).state_dict()
    for name in list(state):
        if name.endswith(("alpha", "beta")) and kept is not None and f"blocks.{kept}." not in name:
            del state[name]
    torch.save(state, tmp_path / "a.pt")
    model = build(share="model")
    load_weights(model, tmp_path / "a.pt")
    assert alphas(model) == [0.37] * 4


def test_a_checkpoint_of_the_original_leaves_the_strengths_alone_after_unmodulate_too():
    original = timm.create_model("vit_base_patch16_224", pretrained=False, **TINY).state_dict()
    for options in ({}, {"share": "model"}, {"layers": "late"}):
        model = build(alpha=0.3, **options)
        assert model.load_state_dict(original, strict=True) == ([], [])
        assert set(alphas(model)) == {0.3}
        plain = unmodulate(model)
        assert not plain._load_state_dict_pre_hooks
        assert plain.load_state_dict(original, strict=True) == ([], [])


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_names_of_wrapped_blocks_are_read(tmp_path: Path, wrapper):
    source, target, wrapped = build(alpha=0.3), build(), build()
    names = {name.replace("blocks.1.", f"blocks.1.{wrapper}."): value for name, value in source.state_dict().items()}
    torch.save({f"module.{name}": value for name, value in names.items()}, tmp_path / "w.pt")
    assert load_weights(target, tmp_path / "w.pt").prefix == "module."
    for name, value in source.state_dict().items():
        assert torch.equal(value, target.state_dict()[name]), name
    wrapped.blocks[0] = torch.compile(wrapped.blocks[0], backend="eager")  # names of the model are read alike
    assert "blocks.0._orig_mod.norm1.weight" in load_weights(wrapped, tmp_path / "w.pt").loaded
    torch.save({**names, "blocks.1.norm1.weight": torch.zeros(32)}, tmp_path / "twice.pt")
    with pytest.raises(ValueError, match=rf"holds blocks\.1\.{wrapper}\.norm1\.weight twice"):
        load_weights(build(), tmp_path / "twice.pt")


def test_a_file_with_several_models_needs_a_choice(tmp_path: Path):
    teacher, student = nn.Linear(2, 2), nn.Linear(2, 2)
    parts = {"student.backbone.": student, "teacher.backbone.": teacher}
    weights = {f"{prefix}{name}": value for prefix, part in parts.items() for name, value in part.state_dict().items()}
    # Of another shape: no candidate.
    weights |= {"head.weight": torch.zeros(5, 2), "head.bias": torch.zeros(5)}
    torch.save(weights, tmp_path / "w.pt")
    model = nn.Linear(2, 2)
    message = r"holds 2 of the tensors under each of 'student\.backbone\.', 'teacher\.backbone\.': choose .* prefix="
    with pytest.raises(ValueError, match=message):
        load_weights(model, tmp_path / "w.pt")
    report = load_weights(model, tmp_path / "w.pt", prefix="teacher.backbone.")
    assert torch.equal(model.weight, teacher.weight)
    assert report.prefix == "teacher.backbone."
    assert len(report.unexpected) == 4
    with pytest.raises(ValueError, match=r"prefix must begin .*; received 'ema\.'\. Prefixes that fit: '.*backbone"):
        load_weights(model, tmp_path / "w.pt", prefix="ema.")


@pytest.mark.parametrize("names", [("model", "model_ema"), ("state_dict", "state_dict_ema"), ("student", "teacher")])
@pytest.mark.parametrize("wrapper", ["", "module.", "backbone."])
def test_sets_under_names_of_their_own_need_a_choice(names: tuple[str, str], wrapper: str, tmp_path: Path):
    sets = {name: nn.Linear(2, 2).state_dict() for name in names}
    wrapped = {name: {wrapper + key: value for key, value in state.items()} for name, state in sets.items()}
    # What else a training checkpoint holds is no candidate.
    others = {"optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "criterion": {"centre": torch.zeros(2)}}
    torch.save({**wrapped, **others, "epoch": 3}, tmp_path / "w.pt")
    model = nn.Linear(2, 2)
    candidates = ", ".join(f"'{re.escape(f'{name}.{wrapper}')}'" for name in names)
    with pytest.raises(ValueError, match=f"holds 2 of the tensors under each of {candidates}: choose one of them by"):
        load_weights(model, tmp_path / "w.pt")
    for name in names:
        load_weights(model, tmp_path / "w.pt", prefix=f"{name}.{wrapper}")
        assert torch.equal(model.weight, sets[name]["weight"])


def test_the_only_set_of_a_checkpoint_keeps_its_names(tmp_path: Path):
    state = nn.Linear(2, 2).state_dict()
    for content in ({"teacher": state}, {"state_dict": {"model": state}}, {"model": state, "optimizer": {"state": {}}}):
        torch.save(content, tmp_path / "w.pt")
        assert load_weights(nn.Linear(2, 2), tmp_path / "w.pt").prefix == ""


def test_a_file_of_a_part_of_the_model_is_told_as_such(tmp_path: Path):
    part = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    torch.save(part.state_dict(), tmp_path / "w.pt")
    model = nn.ModuleDict({"tower": nn.ModuleDict({"model": part}), "head": nn.Linear(2, 3)})
    with pytest.raises(ValueError, match=r"fits the part 'tower\.model' .*model\.get_submodule\('tower\.model'\)$"):
        load_weights(model, tmp_path / "w.pt")
    load_weights(model.get_submodule("tower.model"), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"build the model of this file, without modules that the file does not have$"):
        load_weights(nn.ModuleDict({"other": nn.LayerNorm(5)}), tmp_path / "w.pt")


@pytest.mark.parametrize("share", ["model", "layer", "head"])
@pytest.mark.parametrize("name", ["CLIPVision", "Dinov2", "SiglipVision"])
def test_what_save_pretrained_writes_comes_back_whole(name: str, share: Any, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 16}
    kind, config = getattr(transformers, f"{name}Model"), getattr(transformers, f"{name}Config")(**sizes)
    saved = modulate(kind(config), share=share)
    with torch.no_grad():
        for parameter in saved.parameters():
            parameter.normal_()
    saved.save_pretrained(tmp_path)
    again = modulate(kind.from_pretrained(tmp_path), share=share)
    load_weights(again, tmp_path / "model.safetensors")
    assert saved.state_dict().keys() == again.state_dict().keys()
    for key, value in saved.state_dict().items():
        assert torch.equal(value, again.state_dict()[key]), key


def test_transformers_gives_the_modulated_weights_that_are_asked_for():
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
        attn_implementation="eager",
    )
    model = modulate(transformers.CLIPVisionModel(config).eval(), alpha=0.4, beta=0.3)
    images, foreground = torch.randn(2, 3, 32, 32), torch.tensor([[True, True, False, False, True]] * 2)
    plain = model(images, output_attentions=True).attentions
    modulated = model(images, foreground=foreground, output_attentions=True).attentions
    assert [weights.shape for weights in modulated] == [weights.shape for weights in plain] == [(2, 2, 5, 5)] * 2
    for weights in modulated:
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(2, 2, 5))
    seen = foreground[0]
    assert (modulated[0][:, :, seen][..., seen].sum(-1) > plain[0][:, :, seen][..., seen].sum(-1)).all()


def _sharded(mesh: Any) -> nn.Module:
    torch.manual_seed(0)
    model = TokenBackbone(build())
    for block in cast(Any, model.tower.model).blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def _load_everywhere() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    try:
        mesh, model = init_device_mesh("cpu", (2,)), TokenBackbone(build(alpha=0.3))
        sharded = _sharded(mesh)
        sharded.load_state_dict(sharded.state_dict())
        for broadcast in (False, True):
            target, full = _sharded(mesh), model.state_dict() if rank == 0 or not broadcast else {}
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
            set_model_state_dict(target, full, options=options)
            alpha = target.tower.model.blocks[0].attn.alpha.full_tensor()
            assert round(alpha.item(), 4) == 0.3
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore")
def test_fsdp2_loads_its_state_dict_a_full_one_and_a_broadcast():
    in_processes(_load_everywhere)
