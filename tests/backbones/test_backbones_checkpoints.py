"""Checkpoints of `TokenBackbone` and of modulated models: recorded grids, shared strengths, changed names."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from stmi_layers.backbones import TokenBackbone, load_weights, modulate, resize_positions
from tests.backbones.backbone_checks import build, timm_vit, transformers_vit

pytest.importorskip("torchvision")
for library in ("open_clip", "timm", "transformers"):
    pytest.importorskip(library)

FAMILIES = ("open_clip `VisionTransformer`", "timm `VisionTransformer`", "transformers `Dinov2Model`")
SIZES = {(8, 2): (64, 16), (2, 8): (16, 64), (4, 4): (32, 32), (6, 10): (48, 80)}

every_family = pytest.mark.parametrize("family", FAMILIES)


def backbone(family: str, grid: tuple[int, int], **options) -> TokenBackbone:
    return TokenBackbone(modulate(build(family)), image_size=SIZES[grid], **options)


def saved(weights: dict[str, Tensor], path: Path) -> Path:
    torch.save(weights, path)
    return path


def positions(model: TokenBackbone) -> Tensor:
    return model.tower.get_parameter(model.tower.positions).detach().flatten(0, -2)


@every_family
@pytest.mark.parametrize("grid", SIZES)
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_file_that_tells_its_grid_is_believed(family: str, grid: tuple[int, int], wrapped: bool, tmp_path: Path):
    """8 x 2 patches into the same grid, the transposed one, a square of as many, and a bigger one."""
    source, target = backbone(family, (8, 2)), backbone(family, grid)
    nn.init.normal_(source.tower.get_parameter(source.tower.positions))
    path = saved(nn.ModuleDict({"vit": source}).state_dict(), tmp_path / "backbone.pt")
    report = load_weights(target if wrapped else target.tower.model, path)
    name = source.tower.positions.removeprefix("model.")
    name = f"tower.model.{name}" if wrapped else name
    assert report.resized == ({} if grid == (8, 2) else {name: ((8, 2), grid)})
    assert (report.missing, report.unexpected) == ((), ())
    assert not any("position_grid" in loaded for loaded in report.loaded)
    expected = resize_positions(positions(source), (8, 2), grid, prefix_tokens=source.tower.position_prefix)
    torch.testing.assert_close(positions(target), expected, rtol=0, atol=0)
    assert target.grid == grid
    with pytest.raises(ValueError, match=r"holds its grid, \(8, 2\); received old_grid=\(2, 8\)\. Leave old_grid out"):
        load_weights(target, path, old_grid=(2, 8))
    assert load_weights(target, path, old_grid=(8, 2)).resized == report.resized or not wrapped


def test_a_grid_that_is_none_is_named(tmp_path: Path):
    source = backbone(FAMILIES[0], (8, 2))
    for grid, message in ((torch.ones(3), r"rows and columns; received shape \(3,\)"), ([3, 2], r"old_grid=\(3, 2\)")):
        path = saved(source.state_dict() | {"position_grid": torch.as_tensor(grid)}, tmp_path / "odd.pt")
        with pytest.raises(ValueError, match=message):
            load_weights(source, path)


def test_no_square_is_guessed_for_as_many_patches(tmp_path: Path):
    """16 patches could be the 4 x 4 of a pretrained file or the 8 x 2 of the model."""
    tall, square = timm_vit("vit_tiny_patch16_224", img_size=(64, 16)), timm_vit("vit_tiny_patch16_224", img_size=32)
    path = saved(square.state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match=r"16 patches .* both a square and \(8, 2\) have; pass old_grid="):
        load_weights(tall, path)
    assert load_weights(tall, path, old_grid=(8, 2)).resized == {}
    assert torch.equal(tall.pos_embed, square.pos_embed)
    assert load_weights(tall, path, old_grid=(4, 4)).resized == {"pos_embed": ((4, 4), (8, 2))}
    assert load_weights(square, path).resized == {}


def test_the_grid_travels_with_the_state_dict():
    model = backbone(FAMILIES[1], (8, 2))
    weights = model.state_dict()
    with torch.device("meta"):
        empty = TokenBackbone(modulate(timm_vit("vit_tiny_patch16_224")), image_size=SIZES[2, 8])
    empty.load_state_dict(weights, strict=True, assign=True)
    twins = (empty, copy.deepcopy(empty), pickle.loads(pickle.dumps(empty)))
    for twin in twins:
        assert list(twin.state_dict()) == list(weights)
        assert twin.state_dict()["position_grid"].tolist() == twin.position_grid.tolist() == [2, 8]
        assert not any(value.is_meta for value in twin.state_dict().values())
    torch.testing.assert_close(positions(empty), resize_positions(positions(model), (8, 2), (2, 8), prefix_tokens=1))
    del weights["position_grid"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "position_grid"'):
        model.load_state_dict(weights)
    assert model.load_state_dict(weights, strict=False).unexpected_keys == []


def test_only_strengths_of_the_modulation_may_be_missing(tmp_path: Path):
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.alpha, self.inner = nn.Parameter(torch.ones(1)), modulate(nn.MultiheadAttention(8, 2))

    weights = Other().state_dict()
    path = saved({name: weights[name] for name in weights if name not in ("inner.alpha", "inner.beta")}, tmp_path / "a")
    assert load_weights(Other(), path).missing == ("inner.alpha", "inner.beta")
    path = saved({name: weights[name] for name in weights if name != "alpha"}, tmp_path / "b")
    with pytest.raises(ValueError, match="lacks 1 of the 7 tensors of the model: alpha; build"):
        load_weights(Other(), path)


@pytest.mark.parametrize(
    "name", ["CLIPVisionModel", "CLIPVisionModelWithProjection", "Dinov2Model", "SiglipVisionModel"]
)
def test_what_transformers_saves_loads_again(name: str, tmp_path: Path):
    """Dinov2 has other names in its file than in memory."""
    config = name.replace("ModelWithProjection", "Config").replace("Model", "Config")
    transformers_vit(name, config).save_pretrained(tmp_path)
    source, target = transformers_vit(name, config).from_pretrained(tmp_path), modulate(transformers_vit(name, config))
    report = load_weights(target, tmp_path / "model.safetensors")
    assert {missing.rpartition(".")[2] for missing in report.missing} == {"alpha", "beta"}
    assert report.unexpected == ()
    weights = target.state_dict()
    assert all(torch.equal(weights[key], value) for key, value in source.state_dict().items())


def test_one_parameter_takes_no_two_values(tmp_path: Path):
    """A checkpoint with a pair of strengths for every layer, and a model with one pair."""
    layers, shared = (modulate(timm_vit("vit_tiny_patch16_224"), share=share) for share in ("layer", "model"))
    shared.load_state_dict(layers.state_dict())  # all of them equal
    with torch.no_grad():
        layers.blocks[1].attn.alpha.fill_(0.7)
    with pytest.raises(RuntimeError, match=r'blocks.1.attn.alpha has another value .* modulate\(..., share="layer"\)'):
        shared.load_state_dict(layers.state_dict())
    before = shared.blocks[0].attn.alpha.clone()
    path = saved(layers.state_dict(), tmp_path / "layers.pt")
    with pytest.raises(ValueError, match=r"two values for blocks.0.attn.alpha and blocks.1.attn.alpha"):
        load_weights(shared, path, old_grid=(4, 2))
    assert torch.equal(shared.blocks[0].attn.alpha, before)
    with torch.no_grad():
        layers.blocks[0].attn.alpha.fill_(0.7)
    for twin in (shared, copy.deepcopy(shared)):
        twin.load_state_dict(layers.state_dict())
        assert twin.blocks[1].attn.alpha.item() == pytest.approx(0.7)
    late = modulate(timm_vit("vit_tiny_patch16_224"), share="model", layers="late")
    late.load_state_dict(late.state_dict())
