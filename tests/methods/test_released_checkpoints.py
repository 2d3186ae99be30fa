"""Whole released checkpoints: outputs equal to the research code's with the same parameters.

The references are our reading of what the research codes compute. The files hold random numbers and released names.
"""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from test_demo import released as demo_heads
from torch import Tensor

import released_states as states
from examples import cli
from examples.released.__main__ import Arguments, import_file
from examples.released.carry import METHODS, Imported, carried_of, facts_of_release, fill, settle
from examples.restore import load_model
from examples.towers.releases.tensors import Release, read_release
from examples.train import Options, train
from given_tower import batch_of
from reference import released as formulas
from sets import write_set
from stmi_layers.training import Batch, Machine, facts_of, load_split
from stmi_layers.training.checkpoint import save_checkpoint
from tiny_clip import add_clip

CLIP = {"image_size": (32, 32), "threads": 1}
VIT = {"architecture": "test_vit", "image_size": (64, 64), "num_heads": 2, "threads": 1}
CAMERAS = torch.tensor([2, 1, 1])


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("open_clip")
    return tiny_architecture(tmp_path_factory.mktemp("configs") / "tiny-clip-of-releases.json", states.PATCH)


def tiny_architecture(config: Path, patch: int) -> str:
    vision = {"image_size": 4 * patch, "layers": 2, "width": states.WIDTH, "head_width": 16, "patch_size": patch}
    return add_clip(config, embed_dim=states.DIM, context_length=16, vision=vision)


def imported(method: str, state: dict[str, Tensor], trained_on: str = "rgbnt201", **changes: Any) -> Imported:
    release = Release(state, f"{method}.pth")
    known, recipe, carried = carried_of(method, trained_on, release)
    run = settle(known, recipe, carried, Path(), changes)
    result = fill(run, facts_of_release(run, carried), carried, release)
    result.state.model.eval()
    return result


def three(size: int) -> Batch:
    return batch_of(3, 3, size=(size, size))._replace(cameras=CAMERAS)


def clip_tokens(state: dict[str, Tensor], prefix: str, batch: Batch, *, prompted: bool = False) -> Tensor:
    """Tokens of all modalities, (batch 3 tokens dim)."""
    tower, camera = formulas.under(state, f"{prefix}base."), state[f"{prefix}cv_embed"][CAMERAS - 1, 0]
    return torch.stack(
        [
            formulas.clip_tokens(tower, batch.images[:, index], camera, 2, modality=name if prompted else "")
            for index, name in enumerate(formulas.MODALITIES)
        ],
        dim=1,
    )


def vit_tokens(state: dict[str, Tensor], prefixes: list[str], batch: Batch) -> Tensor:
    towers = [formulas.under(state, prefix) for prefix in prefixes]
    cameras = [tower["sie_embed"][CAMERAS - 1, 0] for tower in towers]
    parts = zip(towers, batch.images.unbind(1), cameras, strict=True)
    return torch.stack([formulas.vit_tokens(tower, images, camera, 2) for tower, images, camera in parts], dim=1)


def assert_features(result: Imported, batch: Batch, **expected: Tensor) -> None:
    with torch.no_grad():
        features = result.state.model(batch).features
    for name, value in expected.items():
        torch.testing.assert_close(
            features[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )


def assert_head(result: Imported, feature: str, state: dict[str, Tensor], neck: str, classifier: str) -> None:
    """The head of a feature is a batch norm and a classifier of the release."""
    head = result.state.objective.losses[feature].head.eval()
    values, own = torch.randn(4, head.dim), formulas.under(state, f"{neck}.")
    normed = (values - own["running_mean"]) / (own["running_var"] + 1e-5).sqrt() * own["weight"] + own["bias"]
    torch.testing.assert_close(head(values), normed @ state[f"{classifier}.weight"].T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("joined", [True, False])
def test_demo(architecture: str, joined: bool):
    state, batch = states.demo(joined=joined), three(32)
    result = imported("demo", state, "rgbnt201" if joined else "msvr310", architecture=architecture, **CLIP)
    tokens = clip_tokens(state, "BACKBONE.", batch)
    heads = formulas.under(state, "generalFusion.") | {
        name: value for name, value in state.items() if "_reduce" in name
    }
    classes, experts = demo_heads(heads, tokens[:, :, 1:], tokens[:, :, 0], 1)
    names = {"G": classes} if joined else dict(zip(("G_RGB", "G_NI", "G_TI"), classes.chunk(3, dim=1), strict=True))
    assert_features(result, batch, experts=experts, **names)
    assert_head(result, "experts", state, "bottleneck_moe", "classifier_moe")
    assert_head(
        result,
        *(("G", state, "bottleneck", "classifier") if joined else ("G_NI", state, "bottleneck_n", "classifier_n")),
    )
    assert result.run.own.expert_heads == 4
    assert result.facts.cameras == (1, 2)


def test_signal(architecture: str):
    state, batch = states.signal(), three(32)
    result = imported("signal", state, architecture=architecture, **CLIP)
    tokens = clip_tokens(state, "clip_vision_encoder.", batch)
    classes, patches = tokens[:, :, 0], tokens[:, :, 1:]
    fused = formulas.signal_fused(formulas.under(state, "SIM."), classes, patches, 10)
    assert_features(result, batch, G=classes.flatten(1), F=fused)
    assert_head(result, "F", state, "bottleneck_var", "classifier_var")
    assert result.state.model.watch()["temperature"] == pytest.approx(0.07)
    assert any("W_v.weight" in line for line in result.report)


@pytest.mark.parametrize("trained_on", ["rgbnt201", "rgbnt100"])
def test_topreid(trained_on: str):
    pytest.importorskip("timm")
    state, batch = states.topreid(), three(64)
    result = imported("topreid", state, trained_on, **VIT)
    tokens = vit_tokens(state, ["RGB.base.", "NI.base.", "TI.base."], batch)
    classes, patches = tokens[:, :, 0], tokens[:, :, 1:]
    fused = formulas.permuted(formulas.under(state, "TPM."), classes, patches, 2)
    single = trained_on == "rgbnt100"
    assert_features(result, batch, F=fused, **({"G_TI": classes[:, 2]} if single else {"G": classes.flatten(1)}))
    assert_head(result, "F", state, "bottleneck_TPM", "classifier_TPM")
    used = (
        ("G_NI", state, "NI.bottleneck", "NI.classifier")
        if single
        else ("G", state, "bottleneck_ViT", "classifier_ViT")
    )
    assert_head(result, *used)


@pytest.mark.parametrize("joined", [True, False])
def test_editor(joined: bool):
    pytest.importorskip("timm")
    state, batch = states.editor(joined=joined), three(64)
    result = imported("editor", state, "rgbnt201" if joined else "rgbnt100", **VIT)
    classes = vit_tokens(state, ["BACKBONE.base."] * 3, batch)[:, :, 0]
    assert_features(result, batch, **({"G": classes.flatten(1)} if joined else {"G_NI": classes[:, 1]}))
    used = ("G", state, "AL_BN", "AL_HEAD") if joined else ("G_NI", state, "BACKBONE_BN", "BACKBONE_HEAD")
    assert_head(result, *used)
    model = result.state.model
    assert torch.equal(model.reduction.weight[1], state["NIR_REDUCE.weight"])
    assert torch.equal(model.centres.centres[2], state["FUSE_block.memory_cls.TIR_centers"])
    assert any("bright" in line for line in result.report)


def test_mambapro_but_for_its_mamba(architecture: str):
    state, batch = states.mambapro(), three(32)
    result = imported("mambapro", state, architecture=architecture, **CLIP)
    tokens = clip_tokens(state, "BACKBONE.", batch, prompted=True)
    joined = torch.cat([tokens[:, :, 0], tokens[:, :, 1:].mean(dim=2)], dim=2)
    reduced = [
        formulas.affine(
            state,
            f"AAM.linear_reduction_{letter}.1",
            formulas.norm(state, f"AAM.linear_reduction_{letter}.0", joined[:, index]),
        )
        for index, letter in enumerate("rnt")
    ]
    assert_features(result, batch, G=tokens[:, :, 0].flatten(1), F=torch.cat(reduced, dim=1))
    assert any("Mamba" in line and "AAM.ma_block.0.in_proj.weight" in line for line in result.report)


def test_idea(architecture: str):
    state = states.idea(text_width=8, length=16, words=2)
    result = imported("idea", state, architecture=architecture, **CLIP)
    captions = [("a red car", "a car", "red"), ("a car",) * 3, ("a man", "a red car", "a car")]
    model: Any = result.state.model
    batch = three(32)._replace(texts=model.encode(captions), has_text=torch.tensor([True] * 3))
    base, inverse = formulas.under(state, "BACKBONE.base."), formulas.under(state, "BACKBONE.inverseNet.")
    tower, tokens = formulas.under(base, "visual."), []
    for index in range(3):
        assert batch.texts is not None
        extra = (
            formulas.inverted_caption(base, inverse, batch.texts[:, index], 2, 2) + tower["new_positional_embedding"]
        )
        tokens.append(formulas.clip_tokens(tower, batch.images[:, index], None, 2, extra=extra))
    stacked = torch.stack(tokens, dim=1)
    assert_features(result, batch, G=stacked[:, :, 0].flatten(1), C=stacked[:, :, -1].flatten(1))
    for feature, part in (("FC", "textual"), ("F", "visual")):
        assert_head(result, feature, state, f"bottleneck_{part}", f"{part}_classifier")


def test_a_file_becomes_a_checkpoint_that_is_loaded_and_trained_on(tmp_path: Path):
    pytest.importorskip("open_clip")
    name = tiny_architecture(tmp_path / "tiny-clip-of-a-file.json", 64)
    state = states.demo()
    state["BACKBONE.base.positional_embedding"] = torch.randn(1 + 4 * 2, states.WIDTH)
    state["BACKBONE.base.conv1.weight"] = torch.randn(states.WIDTH, 3, 64, 64)
    path = tmp_path / "DeMo.pth"
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, path)
    arguments = Arguments("demo", "rgbnt201", path, tmp_path / "alone", architecture=name)
    import_file(arguments)
    loaded = load_model(arguments.out / "checkpoint.pt", machine=Machine(device="cpu"))
    assert torch.equal(loaded.model.pooling.bias[0], state["rgb_reduce.1.bias"])
    with pytest.raises(FileExistsError, match="choose another --out"):
        import_file(arguments)
    data = write_set(tmp_path / "set", ("RGB", "NI", "TI"))
    result = import_file(replace(arguments, out=tmp_path / "with", data=data))
    (line,) = [line for line in result.report if line.startswith("train on: ")]
    words = shlex.split(line.removeprefix("train on: "))
    assert cli.parse_run(words[3:], Options, "python -m examples.train", "")[0] == result.run
    release = read_release(path)
    known, recipe, carried = carried_of("demo", "rgbnt201", release)
    short = {"epochs": 1, "warmup_epochs": 0.0, "identities_per_batch": 5, "images_per_identity": 2, "workers": 0}
    machine = {"evaluate_every": 1, "threads": 1, "device": "cpu", "quiet": True}
    run = settle(known, recipe, carried, data, {"architecture": name, **short, **machine})
    facts = facts_of(load_split(run.data, "train"), run.data.modalities)
    started = fill(run, facts, carried, release)
    save_checkpoint(tmp_path / "run" / "checkpoint.pt", started.state.checkpoint())
    assert set(train(run, tmp_path / "run", resume=True)) == {"G", "experts", "all"}


def test_other_identities_and_cameras_leave_classifiers_and_embeddings_to_training(architecture: str):
    state = states.demo()
    release = Release(state)
    known, recipe, carried = carried_of("demo", "rgbnt201", release)
    run = settle(known, recipe, carried, Path(), {"architecture": architecture, **CLIP})
    facts = facts_of_release(run, carried)._replace(num_identities=7, cameras=(4, 5, 9))
    result = fill(run, facts, carried, release)
    assert result.state.objective.losses["G"].head.classifier.weight.shape[0] == 7
    assert torch.equal(result.state.objective.losses["G"].head.norm.running_mean, state["bottleneck.running_mean"])
    table = result.state.model.get_parameter("backbone.tokens.camera_embedding")
    assert torch.equal(table[0], table[2])
    assert any("of 5 identities, where the training set has 7" in line for line in result.report)


def test_what_does_not_fit_is_refused_by_name(architecture: str):
    state = states.demo()
    options = {"architecture": architecture, **CLIP}
    with pytest.raises(ValueError, match=r"does not know: extra\.weight"):
        imported("demo", {**state, "extra.weight": torch.zeros(2)}, **options)
    with pytest.raises(ValueError, match=r"must hold 'classifier_moe\.weight'"):
        imported("demo", {name: value for name, value in state.items() if name != "classifier_moe.weight"}, **options)
    with pytest.raises(ValueError, match=r"nothing for backbone\.tokens\.tower\.model\.ln_post\.weight"):
        imported("demo", {name: value for name, value in state.items() if "ln_post" not in name}, **options)
    wrong = {**state, "BACKBONE.base.ln_post.weight": torch.ones(3)}
    with pytest.raises(ValueError, match=r"ln_post\.weight is \(3,\) in BACKBONE\.base\.ln_post\.weight and \(32,\)"):
        imported("demo", wrong, **options)
    overlapping = {**state, "BACKBONE.base.positional_embedding": torch.zeros(26, 32)}
    with pytest.raises(ValueError, match=r"4 x 4 patches.*it has 25.*overlap are not supported"):
        imported("demo", overlapping, **options)
    with pytest.raises(ValueError, match=r"image tower under 'BACKBONE\.base\.'.*T2T"):
        imported("demo", {name: value for name, value in state.items() if "conv1" not in name}, **options)
    broken = {**state, "BACKBONE.base.ln_post.weight": torch.full((32,), torch.nan)}
    with pytest.raises(ValueError, match=r"finite numbers; these do not: BACKBONE\.base\.ln_post\.weight"):
        Release(broken)
    with pytest.raises(ValueError, match=f"METHOD must be one of {', '.join(METHODS)}; received 'next'"):
        carried_of("next", "rgbnt201", Release(state))
