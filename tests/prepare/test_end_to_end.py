"""Commands of the guide, from raw images to figures, and their messages for wrong input."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from captions_server import cut, fail, raw, serving, then_well
from examples.prepare.synthetic.dataset import write_dataset
from examples.prepare.synthetic.identities import Settings

# As the guide has it, at the size of a test.
TINY = [
    *("--modalities", "RGB", "NI", "TI", "--image-size", "32", "32", "--dim", "16", "--depth", "1", "--num-heads", "2"),
    *("--stem-width", "8", "--num-tokens", "2", "--epochs", "1", "--warmup-epochs", "0.5", "--threads", "1"),
    *("--identities-per-batch", "4", "--images-per-identity", "2", "--device", "cpu"),
]
Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _key(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "any")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def run(monkeypatch, capsys, tmp_path) -> Run:
    """Runs a command in this process, in an empty folder; what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(module: str, *options: object) -> str:
        capsys.readouterr()
        name = f"examples.prepare.{module}" if module in ("inspect", "masks", "captions") else f"examples.{module}"
        file = f"{name}.__main__" if module in ("masks", "captions", "figures") else name
        method = ["stmi"] if module == "train" else []
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [module, *method, *map(str, options)])
            patch.delitem(sys.modules, file, raising=False)  # else runpy warns of a second copy
            runpy.run_module(name, run_name="__main__", alter_sys=True)
        return capsys.readouterr().out

    return run


@pytest.fixture
def raw_images(tmp_path: Path) -> Path:
    """JPEG images of eight identities in two cameras and three modalities, and nothing else."""
    sizes = {"train_identities": 4, "test_identities": 4, "train_images": 2, "test_images": 2, "cameras": 2}
    write_dataset(tmp_path / "rendered", Settings(size=(32, 32), binding_share=0.0, **sizes))
    root = tmp_path / "raw"
    for source in sorted((tmp_path / "rendered").glob("*/*/*.png")):
        split, modality = source.parts[-3:-1]
        if modality != "mask":
            (root / split / modality).mkdir(parents=True, exist_ok=True)
            with Image.open(source) as image:
                image.save(root / split / modality / f"{source.stem}.jpg", quality=95)
    shutil.rmtree(tmp_path / "rendered")
    return root


def spoil(root: Path) -> tuple[str, str]:
    """Cut a file short, delete another, and take a test identity into train: the names of the first two."""
    first, second = sorted((root / "train" / "RGB").iterdir())[:2]
    first.write_bytes(first.read_bytes()[:300])
    (root / "train" / "TI" / second.name).unlink()
    other = sorted((root / "test" / "RGB").iterdir())[0].name
    for modality in ("RGB", "NI", "TI"):
        shutil.copy(root / "test" / modality / other, root / "train" / modality / other)
    return first.name, second.stem


def test_from_raw_images_to_figures(run: Run, raw_images: Path, tmp_path: Path) -> None:
    root, out = raw_images, tmp_path / "runs" / "mine"
    assert "no problem found" in run("inspect", root)

    assert "classical fallback, NOT SAM 2" in run("masks", root, "--method", "classical")
    assert len(list((root / "train" / "mask").glob("*.png"))) == len(list((root / "train" / "RGB").iterdir())) == 8

    with serving(then_well(fail(500), cut, raw(b"{"))) as server:
        asking = ("captions", "--data", root, "--schema", "vehicles", "--base-url", server.url, "--model", "tiny")
        for split in ("train", "test"):
            assert "8 captions of 8 items" in run(*asking, "--split", split, "--backoff", "0.001")
        asked = len(server.asked)
        run(*asking, "--split", "train")
        assert len(server.asked) == asked  # nothing is asked twice
    assert len(json.loads((root / "text" / "train.json").read_text())) == 8
    assert "no problem found" in run("inspect", root)

    trained = run("train", "--data", root, "--captions", "required", "--out", out, *TINY)
    assert "8 against 8; same identity and camera dropped; 0 of 8 queries skipped" in trained
    checkpoint = out / "checkpoint.pt"
    evaluated = run("evaluate", "--checkpoint", checkpoint, "--device", "cpu", "--threads", "1")
    assert trained.split("protocol")[0].strip() == evaluated.split("protocol")[0].strip()  # the same table

    drawn = run("figures", "--checkpoint", checkpoint, "--count", "1", "--device", "cpu", "--threads", "1")
    assert "left out" not in drawn
    names = ("curves", "retrieval", "features", "attention", "tokens", "hyperedges")
    for name in names:
        assert all((out / "figures" / f"{name}.{kind}").stat().st_size > 1000 for kind in ("png", "svg"))


def test_every_step_names_what_is_wrong(run: Run, raw_images: Path, tmp_path: Path, capsys) -> None:
    root, out = raw_images, tmp_path / "runs" / "mine"
    training = ("train", "--data", root, "--out", out, *TINY)
    with pytest.raises(SystemExit, match=r"^error: .*8 of 8 items lack a mask in mask/.*; make them by `python -m"):
        run(*training)
    with pytest.raises(SystemExit, match=r"^error: captions are required and .*train.json does not exist; write it by"):
        run(*training, "--captions", "required", "--masks", "none")

    damaged, lacking = spoil(root)
    with pytest.raises(SystemExit) as status:
        run("inspect", root)
    assert status.value.code == 1
    found = capsys.readouterr().out
    assert f"train: no TI image of {lacking}" in found
    assert "1 identities are in train and in test" in found
    assert f"train/RGB/{damaged}" in found
    assert "duplicated (3)" in found
    assert "5 problems" in found

    missing = rf"^error: .*1 images are missing .*: TI/{lacking}; add them"
    broken = rf"^error: .*files cannot be used; repair them(.|\n)*train/RGB/{damaged}: cannot be decoded"
    asking = ("captions", "--data", root, "--base-url", "http://127.0.0.1:9", "--model", "tiny")
    for command in (("masks", root, "--method", "classical"), asking, (*training, "--masks", "none")):
        with pytest.raises(SystemExit, match=missing):
            run(*command)
        with pytest.raises(SystemExit, match=broken):
            run(*command, "--missing-modality", "absent")


def test_contradictions_after_the_first_steps_are_named(run: Run, raw_images: Path, tmp_path: Path) -> None:
    root, out = raw_images, tmp_path / "runs" / "mine"
    (root / "text").mkdir()
    (root / "text" / "train.json").write_text(json.dumps([{"item": "000999_cam1_0_00.jpg", "description": "a car"}]))
    contradiction = "1 captions are of items that do not exist: 000999_cam1_0_00"
    training = ("train", "--data", root, "--out", out, *TINY)
    with pytest.raises(SystemExit, match=contradiction):
        run(*training, "--masks", "none", "--captions", "optional")
    with pytest.raises(SystemExit, match=contradiction):
        run("captions", "--data", root, "--base-url", "http://127.0.0.1:9", "--model", "tiny")
    (root / "text" / "train.json").unlink()

    run(*training, "--masks", "none", "--no-reallocation")
    checkpoint = out / "checkpoint.pt"
    shutil.rmtree(root / "test" / "TI")
    for module in ("evaluate", "figures"):
        with pytest.raises(SystemExit, match="modality folder 'TI'"):
            run(module, "--checkpoint", checkpoint, "--device", "cpu")
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    for module in ("evaluate", "figures"):
        with pytest.raises(SystemExit, match=r"checkpoint\.pt is damaged, or is not a checkpoint"):
            run(module, "--checkpoint", checkpoint, "--device", "cpu")
