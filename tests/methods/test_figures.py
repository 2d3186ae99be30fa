"""Figures: numbers equal to the model's, any part may be missing, and every omission is printed."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tyro
from einops import rearrange
from matplotlib.text import Text
from PIL import Image

from examples.figures import curves, save
from examples.figures.__main__ import Arguments, look_inside, main
from examples.figures.attention import draw_class_token, pictures
from examples.figures.look import look
from examples.figures.maps import STYLES, choose_styles, perplexity, principal_components, tsne
from examples.restore import Trained, restore
from examples.stmi.figures.hyperedges import distinct_edges, draw_hyperedges, place_nodes
from examples.stmi.figures.semantic import draw_semantic
from examples.stmi.figures.semantic import look_inside as look_at_tokens
from examples.stmi.model import STMI
from examples.towers.cnn import ConvolutionalBackbone
from examples.towers.pretrained import PretrainedBackbone
from examples.towers.vit import VisionTransformer
from examples.train import train
from no_pictures import save_none
from sets import tiny, write_set
from stmi_layers import SemanticTokenReallocation
from stmi_layers.backbones import TokenBackbone, attention_layers, heads_of, modulate, recording
from stmi_layers.training import Batch, Machine, collate

SIZE = (32, 16)


def images_and_masks() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.rand(2, 2, 3, *SIZE), torch.rand(2, 2, *SIZE) < 0.5


def small_vit() -> VisionTransformer:
    return VisionTransformer(SIZE, dim=16, depth=2, num_heads=2, stem_width=8, per_head=True)


def open_clip_tower() -> PretrainedBackbone:
    from open_clip.transformer import VisionTransformer as Tower

    return PretrainedBackbone(TokenBackbone(modulate(Tower(SIZE, 8, width=16, layers=2, heads=2, mlp_ratio=2.0))))


def timm_tower(name: str, **options) -> PretrainedBackbone:
    import timm

    sizes = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return PretrainedBackbone(TokenBackbone(modulate(timm.create_model(name, **sizes, **options), alpha=0.4)))


BACKBONES = {
    "small": small_vit,
    "open_clip": open_clip_tower,
    "timm": lambda: timm_tower("vit_base_patch16_224"),
    "timm registers, norms": lambda: timm_tower("vit_base_patch16_224", reg_tokens=3, qk_norm=True),
}


def project(layer: torch.nn.Module, merged: torch.Tensor) -> torch.Tensor:
    return layer.out_proj(merged) if hasattr(layer, "out_proj") else layer.proj(layer.norm(merged))


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("name", BACKBONES)
def test_weights_times_values_are_what_the_layer_returns(name: str, masked: bool) -> None:
    backbone = BACKBONES[name]().eval()
    layers, outputs = attention_layers(backbone), []
    assert len(layers) == 2
    for layer in layers:
        layer.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    images, masks = images_and_masks()
    with torch.no_grad(), recording(layers) as calls:
        backbone(images, masks if masked else None)
        for layer, output, of_layer in zip(layers, outputs, calls, strict=True):
            weights, values = heads_of(layer, of_layer[0])
            torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
            returned = output[0] if isinstance(output, tuple) else output
            merged = rearrange(weights @ values, "batch heads tokens dim -> batch tokens (heads dim)")
            torch.testing.assert_close(project(layer, merged), returned)


def test_the_weights_with_and_without_the_mask_differ() -> None:
    backbone = small_vit().eval()
    images, masks = images_and_masks()
    layers = attention_layers(backbone)
    with torch.no_grad(), recording(layers) as calls:
        backbone(images, masks)
        backbone(images, None)
    on, off = (heads_of(layers[0], call).weights for call in calls[0])
    assert (on - off).abs().max() > 0.01
    with recording(layers) as later:
        pass
    backbone(images, masks)
    assert later == [[], []]  # the hooks are gone


def test_the_weights_of_str_times_its_values_are_its_tokens() -> None:
    layer = SemanticTokenReallocation(16, 3, num_heads=2)
    patches, prior = torch.randn(2, 8, 16), torch.randn(2, 16)
    weights = layer.attention(patches, prior)
    bias, matrix = layer.in_proj_bias.chunk(3)[2], layer.in_proj_weight.chunk(3)[2]
    values = rearrange(F.linear(layer.norm_patches(patches), matrix, bias), "b n (h d) -> b h n d", h=2)
    read = layer.out_proj(rearrange(weights @ values, "b h s d -> b s (h d)"))
    tokens = read + torch.cat([layer.queries.expand(2, -1, -1), prior[:, None]], dim=1)
    torch.testing.assert_close(layer.ffn(layer.norm_ffn(tokens)) + tokens, layer(patches, prior))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the set `data` and three runs on it: `full`, `baseline` without masks, `mlp`."""
    root = tmp_path_factory.mktemp("figures")
    write_set(root / "data")
    for name, changes in {
        "full": {"captions": "required"},
        "baseline": {"masks": "none", "reallocation": False},
        "mlp": {"fusion": "mlp", "backbone": "cnn", "masks": "none"},
    }.items():
        train(tiny(root / "data", **{"epochs": 1, "captions": "off", **changes}), root / name)
    return root


def draw(run: Path, name: str, *options: object) -> list[Path]:
    line = ["--checkpoint", str(run / name / "checkpoint.pt"), "--device", "cpu", *map(str, options)]
    return main(tyro.cli(Arguments, args=line))


def test_one_command_draws_all_figures_twice(run: Path, tmp_path: Path, capsys) -> None:
    others = [run / name / "checkpoint.pt" for name in ("baseline", "mlp")]
    written = draw(run, "full", "--out", tmp_path, "--count", 1, "--other-checkpoints", *others)
    names = ("curves", "retrieval", "features", "variants", "attention", "tokens", "hyperedges")
    assert [path.name for path in written] == [f"{name}.{kind}" for name in names for kind in ("png", "svg")]
    for path in written:
        if path.suffix == ".png":
            with Image.open(path) as image:
                assert np.array(image.convert("L")).std() > 5, path
        else:
            assert path.read_text().rstrip().endswith("</svg>")
    assert "is left out" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "reasons"),
    [
        ("baseline", ["tokens is left out: the model has no STR", "hyperedges is left out: the model has no STR"]),
        (
            "mlp",
            [
                "attention is left out: ConvolutionalBackbone has no self-attention with SFM",
                "hyperedges is left out: the model has no CHI: its semantic tokens meet by 'mlp'",
            ],
        ),
    ],
)
def test_what_a_model_lacks_is_left_out_and_said(
    run: Path, tmp_path: Path, capsys, monkeypatch, name: str, reasons: list[str]
):
    monkeypatch.setitem(main.__globals__, "save", save_none)
    written = {path.stem for path in draw(run, name, "--out", tmp_path, "--count", 1)}
    printed = capsys.readouterr().out
    assert all(reason in printed for reason in reasons)
    assert {"attention", "tokens"} & written == {"attention"} ^ ({"attention", "tokens"} if name == "mlp" else set())
    assert "hyperedges" not in written


MACHINE = Machine(device="cpu", threads=1, quiet=True)


def batch_of(trained: Trained, *indices: int) -> Batch:
    return collate([trained.dataset[index] for index in indices])


def test_without_masks_there_is_one_state_and_a_missing_modality_is_nan(run: Path) -> None:
    trained = restore(run / "baseline" / "checkpoint.pt", machine=MACHINE)
    batch = batch_of(trained, 0, 1)
    seen = look(trained.model.backbone, batch._replace(present=torch.tensor([[True, False], [True, True]])))
    assert not isinstance(seen, str)
    assert list(seen.weights) == [False]
    weights = seen.weights[False]
    assert weights[0, -1].isnan().all()
    assert weights[0, :-1].isfinite().all()
    assert weights[1].isfinite().all()
    assert (weights[1].sum(dim=-1) < 1).all()  # the class token looks at itself as well


def test_an_absent_modality_is_drawn_as_absent(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_set(data)
    sorted((data / "test" / "NI").iterdir())[0].unlink()
    changes = {"root": data, "missing_modality": "absent"}
    trained = restore(run / "full" / "checkpoint.pt", changes, machine=MACHINE)
    batch = batch_of(trained, 0)
    seen, looks = look(trained.model.backbone, batch), look_at_tokens(trained.model, batch)
    assert not isinstance(seen, str)
    assert looks.incidence is not None
    nodes = looks.incidence.shape[1] // 2
    assert not looks.incidence[0, -nodes:].any()
    assert looks.weights[0, -1].isnan().all()
    shown, modalities = pictures(trained.dataset, [0]), trained.run.data.modalities
    figures = [
        draw_class_token(seen, shown, modalities, 0.5),
        draw_semantic(looks, shown, modalities, prior=True),
        draw_hyperedges(looks, shown, modalities, prior=True),
    ]
    for number, figure in enumerate(figures):
        said = [text.get_text() for text in figure.findobj(Text)]
        assert any("absent" in text for text in said)
        save(figure, tmp_path / f"{number}.png")
        assert not any("nan" in text for text in said)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--items", "nobody"], r"items must be names of the test split, such as .*; received nobody \(--items\)"),
        (["--count", "0"], "count and max_points must be at least 1; received count=0, max_points=1000"),
    ],
)
def test_wrong_arguments_are_named(run: Path, tmp_path: Path, options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw(run, "full", "--out", tmp_path, *options)


def test_variants_on_other_items_are_refused(run: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_set(data)
    for folder in (data / "test").iterdir():
        sorted(folder.iterdir())[0].unlink()
    train(tiny(data, epochs=1, captions="off"), tmp_path / "other")
    with pytest.raises(ValueError, match=r"other_checkpoints must be tested on the items of .*full.*\(--data\)"):
        draw(run, "full", "--out", tmp_path, "--other-checkpoints", tmp_path / "other" / "checkpoint.pt")


def test_backbones_that_cannot_be_read_say_why(run: Path) -> None:
    trained = restore(run / "baseline" / "checkpoint.pt", machine=MACHINE)
    rotary = timm_tower("vit_base_patch16_dinov3")
    pooled = timm_tower("vit_base_patch16_siglip_224")
    for backbone, reason in (
        (rotary, "the weights of ModulatedEvaAttention cannot be told from its input"),
        (pooled, "the backbone has no class token"),
        (ConvolutionalBackbone(SIZE, dim=16), "ConvolutionalBackbone has no self-attention"),
    ):
        model = STMI(backbone, 2, reallocation=False).eval()
        figures, left_out = look_inside(trained._replace(model=model), [0])
        assert figures == {}
        assert left_out["attention"].startswith(reason)


def test_curves_show_every_family_that_a_model_watches() -> None:
    watch = {"alpha/block_0": 0.5, "beta/block_0": 0.4, "gate": 0.1, "edges/size": 3.0}
    history = [{"epoch": 1, "loss": 2.0, "learning_rate": 1e-3, "watch": {}}]
    history.append({"epoch": 2, "loss": 1.0, "learning_rate": 1e-3, "watch": watch, "mAP": {"U": 0.5}})
    titles = [axis.get_title() for axis in curves(history).axes if axis.get_title()]
    assert titles[2:] == ["alpha, beta, pale: first block", "gate", "edges"]
    assert len([axis for axis in curves(history[:1]).axes if axis.get_title()]) == 2


def test_maps_of_features() -> None:
    corners = np.random.default_rng(0).normal(size=(30, 5)) * [9, 4, 1, 1, 1]
    points, shares = principal_components(corners)
    variance = np.linalg.eigvalsh(np.cov(corners.T))[::-1]
    np.testing.assert_allclose(points.var(axis=0, ddof=1), variance[:2])
    np.testing.assert_allclose(shares, variance[:2] / variance.sum())
    np.testing.assert_allclose(principal_components(-corners)[0] ** 2, points**2)
    assert (perplexity(4), perplexity(31), perplexity(1000)) == (1, 10, 30)
    groups = np.repeat(np.eye(3), 8, axis=0) + np.random.default_rng(1).normal(size=(24, 3)) / 50
    placed = tsne(groups, seed=0)
    own = np.linalg.norm(placed[:, None] - placed[None], axis=-1)
    same = np.equal.outer(np.repeat(range(3), 8), np.repeat(range(3), 8))
    assert own[same].max() < own[~same].min()
    assert (tsne(np.ones((5, 3)), seed=0) == 0).all()
    assert principal_components(np.ones((1, 1)))[0].shape == (1, 2)


def test_colours_are_given_to_identities_spread_over_all() -> None:
    few, many = choose_styles([7, 3, 7]), choose_styles(range(100))
    assert list(few) == [3, 7]
    assert len(set(many.values())) == len(many) == len(STYLES)
    assert (min(many), max(many)) == (0, 99)


def test_nodes_stand_at_the_patch_they_read_most() -> None:
    weights = torch.zeros(2, 3, 8)
    weights[0, 0, 5] = weights[0, 1, 0] = weights[0, 2, 0] = 1.0
    spots = place_nodes(weights, (4, 2), (32, 16), [True, False])
    assert spots[0].tolist() == [12, 20]
    assert np.linalg.norm(spots[1] - spots[2]) > 1  # two tokens at one patch stand beside one another
    assert np.isnan(spots[3:]).all()
    incidence = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]]).bool()
    incidence = torch.cat([incidence, incidence[:, :1]], dim=1)
    assert list(distinct_edges(incidence).items()) == [((0, 1), 2), ((0, 1, 2), 1), ((1, 2), 1)]
