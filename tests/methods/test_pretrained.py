"""The trainer on pretrained towers: from a file into the model, through training and resumption, in miniature."""

import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from examples.stmi import evaluate
from examples.stmi.build import build_model, build_tokenizer
from examples.stmi.run import optimizer_groups, start
from examples.stmi.settings import Settings
from examples.stmi.train import train, train_dataset
from examples.towers.pretrained import PretrainedBackbone, build_clip, build_timm, load_pretrained
from sets import assert_same_weights, tiny, write_set
from stmi_layers.backbones import TokenBackbone, modulate
from stmi_layers.training.checkpoint import save_checkpoint
from tiny_clip import add_clip, write_clip

open_clip = pytest.importorskip("open_clip")
timm = pytest.importorskip("timm")
safetensors = pytest.importorskip("safetensors.torch")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    vision = {"image_size": 32, "layers": 2, "width": 16, "head_width": 8, "patch_size": 8}
    config = tmp_path_factory.mktemp("configs") / "tiny-clip.json"
    return add_clip(config, embed_dim=12, context_length=10, vision=vision)


@pytest.fixture(scope="module")
def weights(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(architecture, tmp_path_factory.mktemp("weights") / "clip.safetensors")


def clip_settings(folder: Path, out: Path, architecture: str, weights: Path | None, **changes) -> Settings:
    options = {"backbone": "open_clip", "architecture": architecture, "weights": weights, "text_encoder": "clip"}
    return tiny(folder, out, **{**options, "image_size": (16, 32), "epochs": 2, **changes})


def test_a_run_starts_from_the_file_trains_all_but_the_text_tower_and_needs_the_file_no_more(
    folder, architecture, weights, tmp_path, monkeypatch
):
    copy = Path(shutil.copy(weights, tmp_path / "copy.safetensors"))
    settings = clip_settings(folder, tmp_path / "out", architecture, copy)
    first = start(settings, train_dataset(settings)).model.state_dict()
    whole = train(settings, quiet=True)
    assert set(whole) == {"G", "U", "T", "all"}
    report = (tmp_path / "out" / "weights.txt").read_text()
    assert f"image tower: {copy} (safetensors file): 32 tensors loaded, found under 'visual.'" in report
    assert "resized: positional_embedding from (4, 4) to (2, 4) patches" in report
    assert f"text tower: {copy} (safetensors file): " in report
    content = torch.load(tmp_path / "out" / "checkpoint.pt")
    for name, value in content["model"].items():
        fixed = name.startswith("text_encoder.tower.") or name.endswith("position_grid")
        assert torch.equal(value, first[name]) == fixed, name
    stop_after_an_epoch(monkeypatch)
    half = clip_settings(folder, tmp_path / "half", architecture, copy)
    with pytest.raises(KeyboardInterrupt):
        train(half, quiet=True)
    monkeypatch.undo()
    copy.unlink()
    assert train(half, resume=True, quiet=True) == whole
    assert_same_weights(tmp_path / "out", tmp_path / "half")


def stop_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    def save_and_stop(*arguments) -> None:
        save_checkpoint(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("examples.stmi.train.save_checkpoint", save_and_stop)


def test_a_checkpoint_is_evaluated_without_the_file(folder, architecture, weights, tmp_path):
    copy = Path(shutil.copy(weights, tmp_path / "copy.safetensors"))
    expected = train(clip_settings(folder, tmp_path / "out", architecture, copy, epochs=1), quiet=True)
    copy.unlink()
    assert evaluate.main(evaluate.Arguments(tmp_path / "out" / "checkpoint.pt", device="cpu")) == expected


def test_the_tokens_are_those_of_the_original_tower_on_images_normalised_its_way(architecture):
    backbone = PretrainedBackbone(TokenBackbone(modulate(build_clip(architecture).image), projected=True)).eval()
    pixels = torch.rand(2, 3, 3, 32, 32)
    patches, globals_ = backbone(pixels * 2 - 1)
    assert patches.shape == (2, 3, 16, 12)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    expected = backbone.tokens.tower.model((pixels.flatten(0, 1) - mean) / std)
    torch.testing.assert_close(globals_.flatten(0, 1), expected)
    assert set(backbone.state_dict()) == {f"tokens.{name}" for name in backbone.tokens.state_dict()}


@pytest.mark.parametrize("captions", ["off", "required"])
def test_masks_steer_a_pretrained_backbone_and_every_parameter_is_in_one_group(
    folder, architecture, captions, tmp_path
):
    settings = clip_settings(folder, tmp_path, architecture, None, captions=captions, strength=0.9)
    tokenizer = build_tokenizer(settings, ["a car"])
    model = build_model(settings, tokenizer).eval()
    images, masks = torch.randn(2, 2, 3, 16, 32), torch.rand(2, 2, 16, 32) < 0.5
    assert not torch.allclose(model.backbone(images, masks)[1], model.backbone(images, None)[1])
    groups = optimizer_groups(settings, model, torch.nn.Linear(1, 1))
    trained = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(trained) == len(set(trained))
    own = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert own.keys() <= set(trained)
    assert not any(name.startswith("text_encoder.tower") for name in own.values())
    assert len(groups[2]["params"]) == 4
    assert all(own[id(parameter)].startswith("backbone.") for parameter in groups[1]["params"])


def test_a_model_of_timm_takes_its_place(folder, tmp_path):
    path = tmp_path / "vit.safetensors"
    source = timm.create_model("test_vit", num_classes=0)
    safetensors.save_file(source.state_dict(), path)
    options = {"backbone": "timm", "architecture": "test_vit", "weights": path, "image_size": (32, 16)}
    metrics = train(tiny(folder, tmp_path / "out", epochs=1, checkpointing=True, **options), quiet=True)
    assert np.isfinite(metrics["U"].mAP)
    report = (tmp_path / "out" / "weights.txt").read_text()
    assert "resized: pos_embed from (10, 10) to (2, 1) patches" in report
    assert "text tower" not in report


def test_the_text_tower_can_stand_beside_a_small_backbone(folder, architecture, weights, tmp_path):
    settings = clip_settings(folder, tmp_path, architecture, weights, backbone="vit")
    run = start(settings, train_dataset(settings))
    assert run.loaded.startswith("text tower: ")
    assert run.model.text_encoder.projection.weight.shape == (16, 12)


def test_weights_without_a_tower_to_fill_and_unknown_architectures_are_refused(folder, architecture, weights, tmp_path):
    with pytest.raises(ValueError, match="weights need a backbone of open_clip or timm, or text_encoder='clip'"):
        load_pretrained(build_model(tiny(folder, tmp_path, captions="off"), None), weights)
    with pytest.raises(ValueError, match=r"a model of open_clip, such as .*; received 'ViT-Z'"):
        build_clip("ViT-Z")
    with pytest.raises(ValueError, match=r"a model of timm, such as .*; received 'ViT-Z'"):
        build_timm("ViT-Z")


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch):
    for build, name, extra in ((build_clip, "open_clip", "clip"), (build_timm, "timm", "timm")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=rf"{name} cannot be imported; .*stmi-layers\[{extra}\]"):
            build("some-model")


def test_the_trainer_needs_neither_library_until_it_is_asked_for_one():
    code = "import sys; sys.modules.update(open_clip=None, timm=None, transformers=None); import examples.stmi.train"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def test_random_weights_where_pretrained_ones_belong_have_to_be_asked_for(folder, architecture, tmp_path):
    settings = clip_settings(folder, tmp_path, architecture, None)
    with pytest.raises(ValueError, match=r"tiny-clip needs pretrained weights: .*--weights, or .* by --random-weights"):
        train(settings, quiet=True)
    with pytest.raises(FileNotFoundError, match=r"--weights must be a file; .*none\.pt is none"):
        train(replace(settings, weights=tmp_path / "none.pt"), quiet=True)
    both = replace(settings, weights=tmp_path / "none.pt", random_weights=True)
    with pytest.raises(ValueError, match="choose one of --weights and --random-weights; received both"):
        train(both, quiet=True)
    asked = replace(settings, random_weights=True)
    said = "image tower and text tower of tiny-clip start from random weights (--random-weights)"
    assert start(asked, train_dataset(asked)).loaded == said


def test_an_architecture_without_known_attention_is_refused_with_another_to_choose(folder, tmp_path):
    for backbone, architecture, other in (
        ("timm", "test_resnet", r"one of timm\.list_models\('vit\*'\)"),
        ("open_clip", "RN50", "'ViT-B-16-quickgelu'"),
    ):
        settings = tiny(folder, tmp_path, backbone=backbone, architecture=architecture)
        with pytest.raises(ValueError, match=f"--architecture {architecture}, .*; choose another .*such as {other}$"):
            build_model(settings, None)


def test_captions_read_before_the_weights_came_are_read_again(architecture, weights, folder, tmp_path):
    settings = clip_settings(folder, tmp_path, architecture, None)
    tokenizer = build_tokenizer(settings, [])
    encoder = build_model(settings, tokenizer).get_submodule("text_encoder")
    tokens = tokenizer.encode(["a red car"])
    with torch.no_grad():  # so that a seed shared with the file makes no difference
        encoder.tower.text_projection.neg_()
    before = encoder(tokens)
    load_pretrained(encoder, weights)
    assert not torch.allclose(encoder(tokens), before)
    torch.testing.assert_close(encoder(tokens), encoder.projection(encoder.tower.encode_text(tokens)))


def test_a_long_caption_is_counted_in_a_warning(folder, architecture, weights, tmp_path):
    settings = clip_settings(folder, tmp_path, architecture, weights, caption_overflow="average")
    dataset = train_dataset(settings)
    long = [item.__class__(**{**vars(item), "caption": "a car " * 9}) for item in dataset.items[:3]]
    dataset.items[:3] = long
    with pytest.warns(UserWarning, match="3 of 20 captions have more than CLIP's 10 tokens and are read in pieces"):
        start(settings, dataset)
