"""IDEA: captions in the tower, shared or one per modality, missing captions, and both towers of a CLIP."""

from pathlib import Path
from typing import Any

import pytest
import torch

from examples.train import train
from method_batches import MODALITIES, SIZE, WORDS, random_batch, small_model
from sets import tiny, write_set
from stmi_layers.training import Facts
from tiny_clip import add_clip, write_clip

CAPTION = "a red car"


def with_captions(model: Any, captions: list[tuple[str, ...]]):
    batch = random_batch(len(captions), model.num_modalities)
    has_text = torch.tensor([any(each) for each in captions])
    return batch._replace(texts=model.encode(captions), has_text=has_text)


def test_one_caption_for_all_modalities_is_the_same_as_that_caption_for_each():
    model = small_model("idea", 3).eval()
    common = with_captions(model, [(CAPTION,), (CAPTION,)])
    each = common._replace(texts=model.encode([(CAPTION,) * 3, (CAPTION,)]))
    assert common.texts.dim() == 2
    assert each.texts.shape[:2] == (2, 3)
    for name, value in model(common).features.items():
        torch.testing.assert_close(model(each).features[name], value, msg=name)


def test_the_caption_of_a_modality_changes_its_own_tokens_and_what_cda_reads_of_them():
    model = small_model("idea", 3).eval()
    batch = with_captions(model, [(CAPTION, CAPTION, CAPTION)])
    other = batch._replace(texts=model.encode([(CAPTION, "a car", CAPTION)]))
    one, two = model(batch).features, model(other).features
    for name in ("G", "C"):
        changed = (one[name] - two[name]).abs().unflatten(1, (3, -1)).amax(dim=2)[0] > 1e-6
        assert changed.tolist() == [False, True, False], name
    assert (one["F"] - two["F"]).abs().unflatten(1, (3, -1)).amax(dim=2).min() > 0


@pytest.mark.parametrize("supervision", ["joined", "single"])
def test_a_missing_caption_leaves_its_half_zero_and_unsupervised(supervision: str):
    model = small_model("idea", 2, supervision=supervision).eval()
    batch = with_captions(model, [(CAPTION, ""), (), (CAPTION, CAPTION)])
    batch = batch._replace(present=torch.tensor([[True, True], [True, True], [True, False]]))
    outputs = model(batch)
    there = torch.tensor([[True, False], [False, False], [True, False]])
    halves = outputs.features["FC"].unflatten(1, (2, -1))
    assert torch.equal(halves.abs().sum(dim=2) > 0, there)
    assert outputs.rows["FC"].tolist() == [True, False, True]
    if supervision == "joined":
        assert torch.equal(outputs.features["C"].unflatten(1, (2, -1)).abs().sum(dim=2) > 0, there)
        assert torch.equal(outputs.rows["C"], outputs.rows["FC"])
    else:
        assert torch.equal(torch.stack([outputs.rows["C_RGB"], outputs.rows["C_NI"]], dim=1), there)
        assert torch.equal(outputs.rows["G_NI"], batch.present[:, 1])


def test_without_captions_the_caption_features_are_not_there():
    run = tiny(Path(), "idea", modalities=MODALITIES, masks="given")
    model = run.build(Facts(MODALITIES, SIZE, num_identities=3))
    assert list(model.widths) == ["G", "F"]
    assert model.headline == "F"
    assert model.encode([(), ()]) is None
    assert list(model.eval()(random_batch(2, 3)._replace(texts=None)).features) == ["G", "F"]


def test_settings_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="captions need a tower of tokens to enter; received --backbone cnn"):
        small_model("idea", 2, backbone="cnn")
    with pytest.raises(ValueError, match="num_prompts needs text_encoder='clip'; received 'words'"):
        small_model("idea", 2, num_prompts=1)
    with pytest.raises(ValueError, match=r"descriptor must be one the model has, .*; received 'F\+FC'"):
        small_model("idea", 2, descriptor="F+FC", aggregation=False)
    with pytest.raises(ValueError, match="batch must hold texts, made by encode"):
        small_model("idea", 2)(random_batch(2, 2)._replace(texts=None))


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("open_clip")
    vision = {"image_size": 32, "layers": 1, "width": 16, "head_width": 8, "patch_size": 8}
    config = tmp_path_factory.mktemp("configs") / "tiny-clip-of-idea.json"
    return add_clip(config, embed_dim=12, context_length=16, vision=vision)


@pytest.mark.parametrize("num_prompts", [0, 2])
def test_both_towers_of_a_clip_train_with_the_text_tower_frozen(architecture: str, num_prompts: int, tmp_path: Path):
    pytest.importorskip("safetensors.torch")
    weights = write_clip(architecture, tmp_path / "clip.safetensors")
    clip = {"backbone": "open_clip", "architecture": architecture, "weights": weights, "text_encoder": "clip"}
    run = tiny(write_set(tmp_path / "set"), "idea", **{**clip, "image_size": (32, 32), "epochs": 1})
    run = run.changed({"num_prompts": num_prompts, "masks": "given"})
    metrics = train(run, tmp_path / "out")
    assert set(metrics) == {"G", "C", "F", "FC", "F+FC", "all"}
    assert "text tower" in (tmp_path / "out" / "weights.txt").read_text()


def test_learned_words_move_the_caption_and_learn(architecture: str):
    clip = {"backbone": "open_clip", "architecture": architecture, "random_weights": True, "text_encoder": "clip"}
    changes = {**clip, "image_size": (32, 32), "num_prompts": 2, "masks": "none", "dropout": 0.0}
    run = tiny(Path(), "idea", **{**changes, "modalities": ("RGB", "NI")})
    model = run.build(Facts(("RGB", "NI"), (32, 32), num_identities=3, words=WORDS))
    batch = with_captions(model, [(CAPTION, "a car"), ("", "a car")])._replace(images=torch.rand(2, 2, 3, 32, 32))
    assert batch.texts.shape == (2, 2, 16)
    model(batch).features["C"].square().sum().backward()
    assert model.text_encoder.prompts.prompts.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in model.text_encoder.tower.parameters())
