"""MambaPro: trainable parameters in a frozen tower, prompts with absent modalities, and supported towers."""

from pathlib import Path
from typing import Any

import pytest
import torch

from examples.mambapro.model import MambaPro
from examples.train import train
from method_batches import random_batch, small_model
from sets import tiny, write_set
from stmi_layers.training import Facts
from tiny_clip import add_clip, write_clip

NAMES = ("RGB", "NI", "TI")


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("open_clip")
    vision = {"image_size": 16, "layers": 2, "width": 16, "head_width": 8, "patch_size": 4}
    config = tmp_path_factory.mktemp("configs") / "tiny-clip-of-mambapro.json"
    return add_clip(config, embed_dim=12, context_length=16, vision=vision)


def on_clip(architecture: str, **changes: Any) -> MambaPro:
    clip = {"backbone": "open_clip", "architecture": architecture, "random_weights": True, "masks": "none"}
    run = tiny(Path(), "mambapro", **{"modalities": NAMES, **clip, **changes})
    return run.build(Facts(NAMES, (16, 16), num_identities=3))


def test_of_a_pretrained_tower_only_what_is_added_learns_and_is_new(architecture: str):
    model = on_clip(architecture, modulated_blocks="none", zero_init=False)
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in learns} == {"backbone", "readout", "reduction"}
    inside = {name for name in learns if name.startswith("backbone")}
    assert inside
    assert all(".adapter." in name or ".prompts." in name for name in inside)
    groups = model.parameter_groups()
    assert not any(parameter.requires_grad for parameter in groups["backbone"])
    assert {id(parameter) for parameter in groups["new"]} == {
        id(parameter) for name, parameter in model.named_parameters() if name in learns
    }
    outputs = model(random_batch(4, 3))
    torch.stack([value.square().sum() for value in outputs.features.values()]).sum().backward()
    assert all(model.get_parameter(name).grad is not None for name in learns)


@pytest.mark.parametrize("training", [False, True])
def test_prompts_go_with_absent_modalities_whatever_stands_there(architecture: str, training: bool):
    model = on_clip(architecture).train(training)
    present = torch.tensor([[True, False, True], [False, True, True]])
    batch = random_batch(2, 3, present=present)
    results = []
    for fill in (0.0, torch.nan):
        images = batch.images.masked_fill(~present[..., None, None, None], fill)
        results.append(model(batch._replace(images=images)).features)
    for name, value in results[0].items():
        assert torch.equal(value, results[1][name]), name
        assert torch.equal(value.unflatten(1, (3, -1)).abs().sum(dim=2) > 0, present), name


def test_a_pretrained_tower_starts_as_it_was(architecture: str):
    plain = on_clip(architecture, adapters=False, num_prompts=0, aggregation="none").eval()
    adapted = on_clip(architecture, num_prompts=0, aggregation="none", zero_init=True).eval()
    assert adapted.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    batch = random_batch(2, 3)
    for name, value in plain(batch).features.items():
        torch.testing.assert_close(adapted(batch).features[name], value, msg=name)


def test_it_trains_from_a_file_of_weights(architecture: str, tmp_path: Path):
    pytest.importorskip("safetensors.torch")
    weights = write_clip(architecture, tmp_path / "clip.safetensors")
    clip = {"backbone": "open_clip", "architecture": architecture, "weights": weights}
    run = tiny(write_set(tmp_path / "set"), "mambapro", **{**clip, "masks": "given", "epochs": 1})
    assert set(train(run, tmp_path / "out")) == {"G", "F", "all"}
    assert "image tower" in (tmp_path / "out" / "weights.txt").read_text()


def test_the_small_transformer_takes_adapters_which_learn_as_new_modules_do():
    model = small_model("mambapro", 2)
    added = [parameter for name, parameter in model.named_parameters() if ".adapter." in name]
    assert len(added) == 4
    assert {id(parameter) for parameter in added} <= {id(parameter) for parameter in model.parameter_groups()["new"]}
    without = small_model("mambapro", 2, adapters=False)
    assert not [name for name, _ in without.named_parameters() if ".adapter." in name]


def test_what_a_tower_cannot_take_is_refused_by_name():
    with pytest.raises(ValueError, match=r"num_prompts needs a pretrained tower.*received 4 with --backbone vit"):
        small_model("mambapro", 2, num_prompts=4)
    with pytest.raises(ValueError, match="adapters need the blocks of a transformer; received --backbone cnn"):
        small_model("mambapro", 2, backbone="cnn")
