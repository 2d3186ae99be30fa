"""Pretraining of a small tower without identities: a falling loss, and models that start from the tower."""

from pathlib import Path
from typing import Any

import pytest
import torch

from examples import pretrain
from examples.towers.tower import Tower, fill_towers
from examples.train import build_model
from sets import tiny, write_set
from stmi_layers.backbones import strengths_of
from stmi_layers.training import Facts

FACTS = Facts(("RGB", "NI"), (16, 16), 5, cameras=(1, 2))
SIZES = {"patch_size": 4, "dim": 16, "depth": 1, "tower_heads": 2}


def arguments(folder: Path, out: Path, backbone: str, **changes: Any) -> pretrain.Arguments:
    tower = Tower(**{**SIZES, "backbone": backbone})
    return pretrain.Arguments(**{"data": (folder,), "out": out, "image_size": (16, 16), "tower": tower, **changes})


@pytest.mark.parametrize("backbone", ["vit", "cnn"])
def test_a_pretrained_tower_has_looked_and_fills_a_model(backbone, tmp_path):
    folder = write_set(tmp_path / "set")
    # From one colour to another: the rest of an image tells of a masked patch.
    left, right = torch.rand(2, 64, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    images = torch.lerp(left, right, torch.linspace(0, 1, 16)).expand(-1, -1, 16, -1)
    asked = arguments(folder, tmp_path / "out", backbone, epochs=30, batch_size=16, learning_rate=1e-2)
    model, history = pretrain.pretrain(asked, images)
    assert history[-1] < 0.4 * history[0]
    assert history[-1] < (images - images.mean(0)).abs().mean()  # what the mean of all images has
    pretrain.save_small_tower(model.tower, asked.out / pretrain.FILE)
    run = tiny(folder, weights=asked.out / pretrain.FILE, backbone=backbone)
    started, report = build_model(run, FACTS)
    count = len(model.tower.state_dict()) - len(strengths_of(model.tower))
    assert report == f"small tower: {count} tensors from {pretrain.FILE}"
    for name, value in model.tower.state_dict().items():
        assert torch.equal(started.backbone.state_dict()[name], value), name


def test_images_are_those_of_the_training_split_one_per_modality(tmp_path, capsys):
    folder = write_set(tmp_path / "set")
    asked = arguments(folder, tmp_path / "out", "vit", epochs=1)
    assert len(pretrain.read_images(asked)) == 5 * 4 * 2
    assert len(pretrain.main(asked)) == 1
    assert "40 images, 1 epochs" in capsys.readouterr().out
    with pytest.raises(FileExistsError, match=r"tower\.safetensors exists already: choose another --out"):
        pretrain.main(asked)
    run = tiny(folder, "topreid", weights=asked.out / pretrain.FILE)
    assert build_model(run, FACTS)[1].startswith("2 small towers: ")


def test_what_is_masked_is_not_seen():
    model = pretrain.MaskedModel(pretrain.build_tower(Tower(**SIZES), FACTS), (16, 16)).eval()
    images, masked = torch.rand(2, 3, 16, 16), torch.zeros(2, 16, dtype=torch.bool)
    masked[:, 3] = True
    seen: list[torch.Tensor] = []
    model.tower.register_forward_pre_hook(lambda _, given: seen.append(given[0][:, 0]))
    model(images, masked)
    hidden = (seen[0] != images).any(dim=1)
    assert hidden[:, :4, 12:].all()  # the fourth patch of the first row
    assert hidden.sum() == 2 * 16
    assert (seen[0][:, :, :4, 12:] == pretrain.GREY).all()


def test_strengths_are_those_of_the_training_and_not_of_the_file(tmp_path):
    path = tmp_path / "tower.safetensors"
    pretrain.save_small_tower(pretrain.build_tower(Tower(**SIZES, shared_strengths=True), FACTS), path)
    asked = Tower(**SIZES, weights=path, modulated_blocks="none", per_head=True)
    model = pretrain.build_tower(asked, FACTS)
    fill_towers(asked, model)
    assert [value.tolist() for value in strengths_of(model).values()] == [[0.0, 0.0]] * 2


def test_weights_of_another_tower_and_other_files_are_refused(tmp_path):
    path = tmp_path / "tower.safetensors"
    pretrain.save_small_tower(pretrain.build_tower(Tower(**SIZES), FACTS), path)
    model = pretrain.build_tower(Tower(**{**SIZES, "dim": 32}), FACTS)
    with pytest.raises(ValueError, match=r"must be of a tower with the same settings and image size; .* differs in "):
        fill_towers(Tower(weights=path), model)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"must be a file of examples\.pretrain; received"):
        fill_towers(Tower(weights=path), model)


@pytest.mark.parametrize(
    ("changes", "rule"),
    [
        ({"masked": 1.0}, "masked must lie between 0 and 1; received 1.0"),
        ({"tower": Tower(backbone="timm")}, "tower must be small"),
        ({"epochs": 0}, "epochs must be positive and batch_size at least 2; received 0, 96"),
        ({"batch_size": 1}, "batch_size at least 2; received 12, 1"),
    ],
)
def test_pretraining_that_cannot_be_is_refused(changes, rule, tmp_path):
    with pytest.raises(ValueError, match=rule):
        arguments(tmp_path, tmp_path, "vit", **changes)
