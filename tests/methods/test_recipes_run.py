"""Recipes from end to end: a folder in the benchmark's layout, weights from a file, one epoch, and the evaluation."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmark_folders import msvr310, noise, panels, rgbnt201
from examples import cli, evaluate, train
from examples.figures.__main__ import describe_panels
from examples.figures.look import ClassToken, look
from examples.preset import Row
from examples.restore import Computer, Trained, restore
from examples.robustness import score_under
from examples.stmi.model import STMI
from stmi_layers.training import Machine, collate
from tiny_clip import add_clip, write_clip

open_clip = pytest.importorskip("open_clip")
safetensors = pytest.importorskip("safetensors.torch")

Write = Callable[[Path], object]


@pytest.fixture(scope="module")
def architecture(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A CLIP of one block and 32 pixels a patch, known to open_clip by this name."""
    vision = {"image_size": 64, "layers": 1, "width": 16, "head_width": 8, "patch_size": 32}
    config = tmp_path_factory.mktemp("configs") / "clip-of-a-block.json"
    return add_clip(config, embed_dim=16, context_length=77, vision=vision)


@pytest.fixture(scope="module")
def weights(architecture: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(architecture, tmp_path_factory.mktemp("weights") / "clip.safetensors")


def with_mask(size: tuple[int, int], *, into: str) -> Write:
    """Writes an image, and a mask of its middle at `into`, seen from the folder of the image."""

    def write(path: Path) -> None:
        noise(path, size)
        folder = (path.parent / into).resolve()
        folder.mkdir(exist_ok=True)
        height, width = size[0], size[1] // (3 if into == "mask" else 1)
        mask = np.zeros((height, width), np.uint8)
        mask[height // 4 : -height // 4, width // 4 : -width // 4] = 255
        Image.fromarray(mask).save(folder / f"{path.stem}.png")

    return write


def persons(root: Path) -> None:
    write = with_mask((32, 16), into="../mask")
    rgbnt201(root, "train_171", 18, range(9), range(1, 3), write)
    rgbnt201(root, "test", 8, range(228, 232), range(1, 3), write)


def vehicles_in_panels(root: Path) -> None:
    write, base = with_mask((128, 768), into="mask"), root / "rgbir"
    panels(base, "bounding_box_train", 16, range(1, 9), range(1, 3), write)
    panels(base, "bounding_box_test", 6, range(51, 54), range(1, 3), write)
    panels(base, "query", 3, range(51, 54), range(1, 2), write)


def vehicles_by_scene(root: Path) -> None:
    write = with_mask((16, 32), into="../mask")
    msvr310(root, "bounding_box_train", 16, range(8), range(2), range(2), write)
    msvr310(root, "bounding_box_test", 6, range(8, 11), range(2), range(2), write)
    msvr310(root, "query3", 3, range(8, 11), range(1), range(1), write)


def write_captions(root: Path) -> None:
    """One for every image of the set, found in it as those who caption it would."""
    folders = {"train_171": "train", "bounding_box_train": "train", "query3": "query", "bounding_box_test": "gallery"}
    captions: dict[str, dict[str, str]] = {}
    for path in sorted(root.rglob("*.jpg")):
        split = next(part for part in path.relative_to(root).parts if part != "rgbir")
        captions.setdefault(folders.get(split, split), {})[path.name] = f"number {path.stem}"
    (root / "text").mkdir()
    for split, of_one in captions.items():
        entries = [{"item": name, "description": text} for name, text in of_one.items()]
        (root / "text" / f"{split}.json").write_text(json.dumps(entries))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "make", "size", "batch", "protocol"),
    [
        ("rgbnt201", persons, (256, 128), (9, 8), "all query all, 8 against 8; same identity and camera dropped; "),
        ("rgbnt100", vehicles_in_panels, (128, 256), (8, 16), "3 against 6; same identity and camera dropped; "),
        ("msvr310", vehicles_by_scene, (128, 256), (8, 8), "3 against 6; same identity and scene dropped; "),
        ("msvr310-research-code", vehicles_by_scene, (128, 256), (8, 8), "same identity and scene dropped; "),
    ],
)
def test_a_recipe_trains_and_evaluates_its_benchmark(
    name, make, size, batch, protocol, architecture, weights, tmp_path, monkeypatch, capsys
):
    data, out, seen = tmp_path / "data", tmp_path / "out", []
    make(data)
    write_captions(data)
    really = STMI.forward

    def spy(model, inputs):
        assert inputs.masks is not None
        assert 0 < inputs.masks.float().mean() < 1
        seen.append((tuple(inputs.images.shape), inputs.labels.unique().numel()))
        return really(model, inputs)

    line = ["--recipe", name, "--data", str(data), "--out", str(out), "--weights", str(weights)]
    line += ["--architecture", architecture, "--epochs", "1", "--workers", "0", "--threads", "1", "--device", "cpu"]
    cameras = name == "msvr310"
    line += ["--camera-embedding"] if cameras else []
    run, options = cli.parse_run(["stmi", *line], train.Options, "python -m examples.train", "")
    monkeypatch.setattr(STMI, "forward", spy)
    with pytest.warns(UserWarning, match="identities have fewer images than images_per_identity"):
        train.main(run, options)
    monkeypatch.undo()
    assert seen[0] == ((batch[0] * batch[1], 3, 3, *size), batch[0])
    printed = capsys.readouterr().out
    departures = [text for text in printed.splitlines() if text.startswith(f"differs from recipe {name}: ")]
    assert len(departures) == 2 + cameras
    assert "image tower: " in printed
    assert "text tower: " in printed

    trained = json.loads((out / "metrics.json").read_text())
    again = evaluate.main(evaluate.Arguments(out / "checkpoint.pt", machine=Computer(device="cpu")))
    evaluated = json.loads((out / "evaluation" / "metrics.json").read_text())
    assert evaluated["descriptors"] == trained["descriptors"]
    assert protocol in trained["protocol"] == evaluated["protocol"]
    assert trained["skipped_queries"] == 0
    assert trained["headline"] == ("G+T" if name.endswith("research-code") else "U")
    assert all(0 < of_one.mAP <= 1 for of_one in again.values())
    machine = Machine(device="cpu", quiet=True)
    restored = restore(out / "checkpoint.pt", machine=machine)
    assert bool(len(restored.model.backbone.cameras)) == cameras
    panels, chosen, features = describe_panels(restored)
    assert chosen == trained["headline"]
    assert f"{chosen}, mAP {100 * again[chosen].mAP:.1f} %" in panels
    assert len(features) == len(restored.dataset)
    without_masks = score_under(out / "checkpoint.pt", Row("without masks", "full", masks="empty"), machine)
    assert without_masks["headline"] in without_masks["descriptors"]
    if cameras:
        assert_figures_read_cameras(restored)


def assert_figures_read_cameras(trained: Trained) -> None:
    """The attention drawn is that of the viewpoint of the image, which stands for the camera."""

    def seen() -> torch.Tensor:
        found = look(trained.model.backbone, collate([trained.dataset[0]]))
        assert isinstance(found, ClassToken)
        return found.weights[True]

    before, table = seen(), trained.model.backbone.tokens.camera_embedding
    view = trained.model.backbone.cameras.tolist().index(trained.dataset.items[0].view)
    with torch.no_grad():
        table[1 - view] += 10 * torch.randn(table.shape[1:])
        assert torch.equal(seen(), before)
        table[view] += 10 * torch.randn(table.shape[1:])
    assert not torch.allclose(seen(), before, atol=1e-3)
