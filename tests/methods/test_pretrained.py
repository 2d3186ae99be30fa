"""Training from pretrained towers: loading from a file, training and resumption, at a small size."""

import shutil
import socket
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples import evaluate
from examples.restore import Computer
from examples.run import Run
from examples.towers.architectures import build_clip, build_timm
from examples.towers.clip_text import ClipVocabulary
from examples.towers.pretrained import PretrainedBackbone, load_pretrained
from examples.train import build_model, load_splits, train
from processes import said
from sets import assert_same_weights, tiny, write_set
from stmi_layers.backbones import TokenBackbone, modulate
from stmi_layers.training import Facts, facts_of, save_checkpoint
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


def clip_run(folder: Path, architecture: str, weights: Path | None, **changes: Any) -> Run:
    options = {"backbone": "open_clip", "architecture": architecture, "weights": weights, "text_encoder": "clip"}
    return tiny(folder, **{**options, "image_size": (16, 32), "epochs": 2, **changes})


def start(run: Run, *, pretrained: bool = True) -> tuple[Any, str]:
    """The model of a run before its first epoch, and what became of its weights."""
    return build_model(run, facts_of(load_splits(run)[0], run.data.modalities), pretrained=pretrained)


def test_a_run_starts_from_the_file_trains_all_but_the_text_tower_and_needs_the_file_no_more(
    folder, architecture, weights, tmp_path, monkeypatch
):
    copy = Path(shutil.copy(weights, tmp_path / "copy.safetensors"))
    run = clip_run(folder, architecture, copy)
    first = start(run)[0].state_dict()
    whole = train(run, tmp_path / "out")
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
    with pytest.raises(KeyboardInterrupt):
        train(run, tmp_path / "half")
    monkeypatch.undo()
    copy.unlink()
    assert train(run, tmp_path / "half", resume=True) == whole
    assert_same_weights(tmp_path / "out", tmp_path / "half")


def stop_after_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    def save_and_stop(*arguments) -> None:
        save_checkpoint(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr("stmi_layers.training.loop.save_checkpoint", save_and_stop)


def test_a_checkpoint_is_evaluated_without_the_file(folder, architecture, weights, tmp_path):
    copy = Path(shutil.copy(weights, tmp_path / "copy.safetensors"))
    expected = train(clip_run(folder, architecture, copy, epochs=1), tmp_path / "out")
    copy.unlink()
    arguments = evaluate.Arguments(tmp_path / "out" / "checkpoint.pt", machine=Computer(device="cpu"))
    assert evaluate.main(arguments) == expected


def test_the_tokens_are_those_of_the_original_tower_on_images_normalised_its_way(architecture):
    backbone = PretrainedBackbone(TokenBackbone(modulate(build_clip(architecture).image), projected=True)).eval()
    pixels = torch.rand(2, 3, 3, 32, 32)
    patches, globals_ = backbone(pixels)
    assert patches.shape == (2, 3, 16, 12)
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    )
    expected = backbone.tokens.tower.model((pixels.flatten(0, 1) - mean) / std)
    torch.testing.assert_close(globals_.flatten(0, 1), expected)
    assert set(backbone.state_dict()) == {f"tokens.{name}" for name in backbone.tokens.state_dict()}


@pytest.mark.parametrize("captions", ["off", "required"])
def test_masks_steer_a_pretrained_tower_and_every_trained_parameter_is_in_one_group(folder, architecture, captions):
    model, _ = start(clip_run(folder, architecture, None, captions=captions, strength=0.9), pretrained=False)
    model.eval()
    images, masks = torch.rand(2, 2, 3, 16, 32), torch.rand(2, 2, 16, 32) < 0.5
    assert not torch.allclose(model.backbone(images, masks)[1], model.backbone(images, None)[1])
    groups = model.parameter_groups()
    trained = [id(one) for group in groups.values() for one in group if one.requires_grad]
    assert len(trained) == len(set(trained))
    own = {id(parameter): name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert own.keys() == set(trained)
    assert not any(name.startswith("text_encoder.tower") for name in own.values())
    assert len(groups["strengths"]) == 4
    assert all(own[id(parameter)].startswith("backbone.") for parameter in groups["backbone"])


def test_a_model_of_timm_takes_its_place(folder, tmp_path):
    path = tmp_path / "vit.safetensors"
    source = timm.create_model("test_vit", num_classes=0)
    safetensors.save_file(source.state_dict(), path)
    options = {"backbone": "timm", "architecture": "test_vit", "weights": path, "image_size": (32, 16)}
    metrics = train(tiny(folder, epochs=1, checkpointing=True, **options), tmp_path / "out")
    assert np.isfinite(metrics["U"].mAP)
    report = (tmp_path / "out" / "weights.txt").read_text()
    assert "resized: pos_embed from (10, 10) to (2, 1) patches" in report
    assert "text tower" not in report


def test_the_text_tower_can_stand_beside_a_small_tower(folder, architecture, weights):
    model, loaded = start(clip_run(folder, architecture, weights, backbone="vit"))
    assert loaded.startswith("text tower: ")
    assert model.text_encoder.projection.weight.shape == (16, 12)


def test_weights_without_a_tower_to_fill_and_unknown_architectures_are_refused(folder, weights):
    with pytest.raises(ValueError, match=r"weights need a pretrained tower, of images or captions; .* has neither"):
        load_pretrained(tiny(folder).build(Facts(("RGB", "NI"), (16, 16), 5)), weights)
    with pytest.raises(ValueError, match=r"a model of open_clip, such as .*; received 'ViT-Z'"):
        build_clip("ViT-Z")
    with pytest.raises(ValueError, match=r"a model of timm, such as .*; received 'ViT-Z'"):
        build_timm("ViT-Z")


@pytest.mark.parametrize("name", ["hf-hub:someone/model", "hf_hub:someone/model", "local-dir:/tmp/model"])
def test_the_name_of_an_architecture_fetches_nothing(name, monkeypatch):
    """A checkpoint holds the name, and may come from a stranger."""
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection is opened"))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("an address is looked up"))
    for build in (build_clip, build_timm, ClipVocabulary):
        with pytest.raises(ValueError, match=rf"architecture must be a model of .*; received '{name}'"):
            build(name)
    with pytest.raises(ValueError, match="built without downloads; 'roberta-ViT-B-32' takes its text tower from 'robe"):
        build_clip("roberta-ViT-B-32")


def test_a_library_that_is_missing_is_named_with_its_extra(monkeypatch):
    for build, name, extra in ((build_clip, "open_clip", "clip"), (build_timm, "timm", "timm")):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ImportError, match=rf"{name} cannot be imported; from a clone: pip install '\.\[{extra}\]'"):
            build("some-model")


def test_the_trainer_needs_neither_library_nor_pictures_until_it_is_asked_for_one(tmp_path: Path):
    late = ["open_clip", "timm", "transformers", "matplotlib", "tensorboard", "sklearn"]
    code = f"import sys; import examples.train, examples.stmi.model; print([n for n in {late} if n in sys.modules])"
    assert said(exec, code, says=tmp_path / "said.txt") == "[]\n"


def test_random_weights_where_pretrained_ones_belong_have_to_be_asked_for(folder, architecture, tmp_path):
    run = clip_run(folder, architecture, None)
    with pytest.raises(ValueError, match=r"tiny-clip needs pretrained weights: .*--weights, or .* by --random-weights"):
        train(run, tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no file at .*none\.pt \(--weights\)"):
        train(run.changed({"weights": tmp_path / "none.pt"}), tmp_path)
    both = run.changed({"weights": tmp_path / "none.pt", "random_weights": True})
    with pytest.raises(ValueError, match="choose one of --weights and --random-weights; received both"):
        train(both, tmp_path)
    said = "image tower and text tower of tiny-clip start from random weights (--random-weights)"
    assert start(run.changed({"random_weights": True}))[1] == said


def test_an_architecture_without_known_attention_is_refused_with_another_to_choose(folder):
    for backbone, architecture, other in (
        ("timm", "test_resnet", r"one of timm\.list_models\('vit\*'\)"),
        ("open_clip", "RN50", "'ViT-B-16-quickgelu'"),
    ):
        run = tiny(folder, backbone=backbone, architecture=architecture)
        with pytest.raises(ValueError, match=f"--architecture {architecture}, .*; choose .*such as {other}, or"):
            run.build(Facts(("RGB", "NI"), (16, 16), 5))


def test_a_long_caption_is_counted_in_a_warning(folder, architecture, weights):
    model, _ = start(clip_run(folder, architecture, weights, caption_overflow="average"))
    captions = [("a car " * 9,)] * 3 + [("a car",)] * 17
    with pytest.warns(UserWarning, match="3 of 20 captions have more than CLIP's 10 tokens and are read in pieces"):
        assert model.encode(captions).shape == (20, 12)
