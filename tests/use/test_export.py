"""Exported files: outputs equal to the model's for any batch, presence and runtime, and known faults of exporters."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from torch import nn

from examples import export
from examples.exported import open_onnx, open_openvino, open_pt2, program_of, write_onnx
from examples.quantised import quantise
from examples.restore import load_model
from examples.serving import Serving, examples_of
from examples.train import train
from sets import tiny
from stmi_layers.training import Machine, MultiModalDataset, describe, load_split, protocol_for, score, unlabelled

ROOT = Path(__file__).parents[2]
CPU = Machine(device="cpu")


def run(*arguments: object) -> dict[str, Any]:
    return export.main(tyro.cli(export.Arguments, args=[*map(str, arguments), "--device", "cpu"]))


@pytest.fixture(scope="module")
def onnx_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    out = tmp_path_factory.mktemp("export") / "model.onnx"
    report = run("--checkpoint", checkpoint, "--out", out, "--score")
    assert report["batches compared"] == "3, 1, 2, 5"
    assert report["mAP of the file"] == report["mAP of the model"]
    assert float(report["largest difference"]) < 1e-5
    assert float(report["least cosine"]) > 0.9999
    return out


@pytest.fixture
def written(onnx_file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The model that all tests share is not made into a graph again: exports start from the file of the first one."""
    with monkeypatch.context() as patch:
        patch.setattr(export, "write_onnx", lambda serving, example, out, facts: shutil.copy(onnx_file, out))
        yield


def metadata(path: Path) -> dict[str, Any]:
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    return json.loads(session.get_modelmeta().custom_metadata_map["stmi-layers"])


@pytest.mark.slow
def test_one_onnx_file_takes_any_batch_and_says_what_it_needs(onnx_file: Path, checkpoint: Path):
    assert sorted(path.name for path in onnx_file.parent.iterdir()) == ["model.onnx", "model.onnx.test.npz"]
    facts = metadata(onnx_file)
    assert facts["inputs"] == ["images", "masks", "present"]
    assert facts["outputs"] == ["U", "G", "T"]
    assert facts["modalities"] == ["RGB", "NI"]
    assert facts["preprocessing"]["size"] == [16, 16]
    import onnx

    proto = onnx.load(str(onnx_file))
    assert all(value.type.tensor_type.shape.dim[0].dim_param for value in proto.graph.input)
    loaded = load_model(checkpoint, machine=CPU)
    run_file, serving = open_onnx(onnx_file), Serving(loaded.model, loaded.run)
    images, masks = torch.rand(7, 2, 3, 16, 16), torch.rand(7, 2, 16, 16) < 0.5
    masks[0] = False  # nothing to see in the foreground
    present = torch.tensor([[True, False], [False, True]] * 3 + [[True, True]])
    for rows in (slice(0, 7), slice(0, 1), slice(1, 2)):
        example = {"images": images[rows], "masks": masks[rows], "present": present[rows]}
        with torch.no_grad():
            expected = serving(*example.values())
        for one, other in zip(expected, run_file(example), strict=True):
            torch.testing.assert_close(torch.from_numpy(other), one, rtol=1e-4, atol=1e-5)
    # What stands in an absent slot does not count, and what is there does.
    filled = torch.where(present[..., None, None, None], images, torch.nan)
    found = run_file({"images": images, "masks": masks, "present": present})[0]
    other = {"images": filled, "masks": masks ^ ~present[..., None, None], "present": present}
    np.testing.assert_array_equal(run_file(other)[0], found)
    everything = {"images": images, "masks": masks, "present": torch.ones_like(present)}
    assert not np.allclose(run_file(everything)[0], found, atol=1e-3)


@pytest.mark.slow
def test_the_vector_beside_a_file_tests_it(onnx_file: Path, checkpoint: Path):
    vector = np.load(f"{onnx_file}.test.npz")
    assert str(vector["fingerprint"]) == metadata(onnx_file)["fingerprint"]
    example = {name: torch.from_numpy(vector[f"input {name}"]) for name in ("images", "masks", "present")}
    np.testing.assert_allclose(open_onnx(onnx_file)(example)[0], vector["output U"], atol=1e-5)


@pytest.mark.slow
def test_the_script_of_the_docs_needs_no_torch(onnx_file: Path, checkpoint: Path, data: Path, tmp_path: Path):
    script = ROOT / "examples" / "onnx_script.py"
    lines = script.read_text().splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 88
    (tmp_path / "torch.py").write_text("raise ImportError('torch is not needed')")
    name = "000005_cam1_0_00.png"
    files = {
        "RGB": data / "test" / "RGB" / name,
        "NI": data / "test" / "NI" / name,
        "mask": data / "test" / "mask" / name,
    }
    command = [sys.executable, str(script), str(onnx_file), *(f"{key}={path}" for key, path in files.items())]
    environment = {"PYTHONPATH": f"{tmp_path}:" + ":".join(filter(None, sys.path))}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    loaded = load_model(checkpoint, machine=CPU)
    dataset = load_split(loaded.run.data, "test")
    (place,) = [index for index, item in enumerate(dataset.items) if item.name == Path(name).stem]
    silent = type(dataset)([dataset.items[place]], (16, 16))
    silent.encode_captions(lambda captions: loaded.model.encode([()]))
    expected = describe_one(loaded.model, silent)
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-5)


RUNTIME = """
import numpy
from types import SimpleNamespace

class InferenceSession:
    def __init__(self, path):
        self.facts = open(path).read()

    def get_modelmeta(self):
        return SimpleNamespace(custom_metadata_map={"stmi-layers": self.facts})

    def run(self, outputs, inputs):
        return [numpy.concatenate([numpy.ravel(inputs[name]) for name in inputs])[None]]
"""


def test_the_script_prepares_images_as_the_trainer_does(tmp_path: Path):
    """A thermal image of 16 bits, a photograph on its side, a mask and a camera; the "model" returns its inputs."""
    (tmp_path / "onnxruntime.py").write_text(RUNTIME)
    ranges = {"TI": [7000.0, 9000.0]}
    facts = {"modalities": ["RGB", "TI"], "preprocessing": {"size": [8, 6], "ranges": ranges}, "outputs": ["U"]}
    (tmp_path / "m").write_text(json.dumps({**facts, "inputs": ["images", "masks", "present", "cameras"]}))
    random = np.random.default_rng(0)
    Image.fromarray(random.integers(6500, 9500, (20, 15)).astype(np.uint16)).save(tmp_path / "t.png")
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(random.integers(0, 256, (15, 20, 3), np.uint8)).save(tmp_path / "r.png", exif=turned)
    Image.fromarray(np.where(random.random((20, 15)) < 0.5, 255, 0).astype(np.uint8)).save(tmp_path / "m.png")
    files = {"RGB": tmp_path / "r.png", "TI": tmp_path / "t.png", "mask": tmp_path / "m.png", "camera": 2}
    command = [sys.executable, ROOT / "examples" / "onnx_script.py", tmp_path / "m"]
    command += [f"{name}={value}" for name, value in files.items()]
    environment = {"PYTHONPATH": f"{tmp_path}:" + ":".join(filter(None, sys.path))}
    done = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, env=environment)
    item = replace(unlabelled(["x"], [[files["RGB"], files["TI"]]])[0], masks=(files["mask"],) * 2)
    sample = MultiModalDataset([item], (8, 6), ranges=[None, (7000.0, 9000.0)])[0]
    assert sample.masks is not None
    expected = [*sample.images.flatten().tolist(), *sample.masks.flatten().tolist(), 1, 1, 2]
    np.testing.assert_allclose(json.loads(done.stdout), expected, atol=1e-6)
    refused = subprocess.run(
        [*map(str, command), f"TI={files['RGB']}"], capture_output=True, text=True, env=environment
    )
    assert "16 bits: one channel, a range" in refused.stderr


def describe_one(model: Any, dataset: Any) -> np.ndarray:
    from stmi_layers.training import collate

    with torch.no_grad():
        features = model(collate([dataset[0]])._replace(has_text=torch.tensor([False]))).features
    return nn.functional.normalize(features["U"])[0].numpy()


@pytest.mark.slow
def test_openvino_agrees_in_float32_also_after_its_own_file(onnx_file: Path, checkpoint: Path, tmp_path: Path):
    openvino = pytest.importorskip("openvino")
    loaded = load_model(checkpoint, machine=CPU)
    serving = Serving(loaded.model, loaded.run)
    openvino.save_model(openvino.convert_model(str(onnx_file)), tmp_path / "m.xml", compress_to_fp16=False)
    for example in examples_of(serving, loaded.facts):
        with torch.no_grad():
            expected = serving(*example.values())[0]
        for path in (onnx_file, tmp_path / "m.xml"):
            np.testing.assert_allclose(open_openvino(path)(example)[0], expected.numpy(), atol=1e-5)


@pytest.mark.slow
def test_pt2_takes_captions_as_inputs_and_has_no_modes(checkpoint: Path, tmp_path: Path):
    out = tmp_path / "model.pt2"
    report = run("--checkpoint", checkpoint, "--out", out, "--format", "pt2", "--texts", "--score")
    assert report["mAP of the file"] == report["mAP of the model"]
    assert float(report["largest difference"]) < 1e-5
    extra = {"metadata.json": ""}
    program = torch.export.load(out, extra_files=extra)
    assert json.loads(extra["metadata.json"])["inputs"] == ["images", "masks", "present", "texts", "has_text"]
    with pytest.raises(NotImplementedError):
        program.module().eval()
    vector = np.load(f"{out}.test.npz")
    names = json.loads(extra["metadata.json"])["inputs"]
    example = {name: torch.from_numpy(vector[f"input {name}"]) for name in names}
    np.testing.assert_allclose(open_pt2(out)(example)[0], vector["output U"], atol=1e-5)
    grey = example | {"masks": 255 * example["masks"].to(torch.uint8), "present": example["present"].float()}
    np.testing.assert_allclose(open_pt2(out)(grey)[0], vector["output U"], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {"backbone": "cnn", "masks": "none", "captions": "off", "reallocation": False},
        {
            "captions": "off",
            "common": True,
            "descriptor": "U+C",
            "modality_dropout": 0.5,
            "fusion": "mlp",
            "masks": "ones",
        },
    ],
    ids=["cnn", "joined, common, mlp"],
)
def test_every_variant_exports(settings: dict[str, Any], data: Path, tmp_path: Path):
    pytest.importorskip("onnxruntime")
    train(tiny(data, epochs=1, warmup_epochs=0.5, **settings), tmp_path)
    run("--checkpoint", tmp_path / "checkpoint.pt")
    facts = metadata(tmp_path / "model.onnx")
    assert facts["outputs"][0] == settings.get("descriptor", "G" if "reallocation" in settings else "U")
    assert ("masks" in facts["inputs"]) == (settings.get("masks") != "none")


class Static(nn.Module):
    """The kind of fault that once fixed the batch: `len` of a tensor is a number."""

    widths = {"x": 4}  # noqa: RUF012
    headline = "x"

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(4))

    def encode(self, captions: Any) -> None:
        return None

    def forward(self, batch: Any) -> Any:
        from stmi_layers.training import Outputs

        token = self.token.expand(len(batch.images), 4)
        return Outputs({"x": token + batch.images.mean(dim=(1, 2, 3, 4))[:, None]})


@pytest.mark.slow
def test_a_static_graph_is_an_error(checkpoint: Path, tmp_path: Path):
    loaded = load_model(checkpoint, machine=CPU)
    serving = Serving(Static(), loaded.run)
    example = examples_of(serving, loaded.facts)[0]
    with pytest.raises(ValueError, match=r"the model must take any number of samples; its graph does not"):
        program_of(serving, example)
    with pytest.raises(ValueError, match=r"the model must take any number of samples"):
        write_onnx(serving, example, tmp_path / "x.onnx", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_of_2_gb_is_refused_before_it_is_written(checkpoint: Path, tmp_path: Path, monkeypatch):
    pytest.importorskip("onnxscript")
    loaded = load_model(checkpoint, machine=CPU)
    monkeypatch.setattr("examples.exported.LARGEST", 1000)
    with pytest.raises(ValueError, match=r"less than 2 GB as one ONNX file; .*use pt2"):
        export.export(loaded, tmp_path / "m.onnx", export.Arguments(checkpoint, tmp_path / "m.onnx"))
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.usefixtures("written")
def test_a_file_is_whole_and_of_this_model_or_not_there(checkpoint: Path, tmp_path: Path, monkeypatch):
    out = tmp_path / "model.onnx"
    (tmp_path / "model.onnx.data").write_bytes(b"weights of another model")
    loaded = load_model(checkpoint, machine=CPU)
    loaded.model.train()
    export.export(loaded, out, export.Arguments(checkpoint, out))
    assert loaded.model.training
    assert not (tmp_path / "model.onnx.data").exists()
    before = out.read_bytes()
    # A runtime that computes something else.
    monkeypatch.setattr(export, "open_onnx", lambda path: lambda example: [v + 1 for v in open_onnx(path)(example)])
    with pytest.raises(ValueError, match=r"must give the descriptors of the model within 0\.0002; U differs by 1"):
        export.export(loaded, out, export.Arguments(checkpoint, out))
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.test.npz"]


def test_options_that_exclude_each_other(checkpoint: Path, other_checkpoint: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"int8 must go with format='onnx'"):
        run("--checkpoint", checkpoint, "--format", "pt2", "--int8")
    with pytest.raises(ValueError, match=r"texts must be left out for a model that reads no captions"):
        run("--checkpoint", other_checkpoint, "--texts", "--out", tmp_path / "m.onnx")
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at"):
        run("--checkpoint", tmp_path / "none.pt")


@pytest.mark.slow
@pytest.mark.usefixtures("written")
def test_int8_is_smaller_and_close(onnx_file: Path, checkpoint: Path, tmp_path: Path):
    report = run("--checkpoint", checkpoint, "--out", tmp_path / "small.onnx", "--int8", "--score")
    assert (tmp_path / "small.onnx").stat().st_size < onnx_file.stat().st_size
    import onnx

    weights = onnx.load(str(tmp_path / "small.onnx")).graph.initializer
    assert sum(one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 2 for one in weights) >= 5
    assert float(report["least cosine"]) > 0.99
    assert report["before int8, batches compared"] == "3, 1, 2, 5"
    assert metadata(tmp_path / "small.onnx") == metadata(onnx_file)


@pytest.mark.slow
def test_static_quantisation_of_matrix_products(onnx_file: Path, tmp_path: Path):
    """Samples for calibration lack modalities: by default the 256 levels would reach down to their masked scores."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    torch.manual_seed(0)
    present = torch.tensor([[True, True], [True, False], [False, True]] * 4)
    samples = {"images": torch.rand(12, 2, 3, 16, 16), "masks": torch.rand(12, 2, 16, 16) < 0.5, "present": present}

    batches = iter([{name: value.numpy() for name, value in samples.items()}])

    class Calibration(CalibrationDataReader):
        def get_next(self):
            return next(batches, None)

    small = tmp_path / "small.onnx"
    quantize_static(onnx_file, small, Calibration(), op_types_to_quantize=["MatMul", "Gemm"])
    one, other = (torch.from_numpy(open_onnx(path)(samples)[0]) for path in (small, onnx_file))
    assert 1e-6 < 1 - torch.cosine_similarity(one, other).min() < 0.01


@pytest.mark.filterwarnings("ignore")
def test_a_whole_model_is_quantised_in_torch(checkpoint: Path):
    loaded = load_model(checkpoint, machine=CPU)
    dataset = load_split(loaded.run.data, "test")
    dataset.encode_captions(loaded.model.encode)
    from stmi_layers.training import collate

    small = quantise(loaded.model, collate([dataset[0], dataset[1]]))
    kinds = [type(module).__module__ for module in small.modules()]
    assert sum("quantized" in kind for kind in kinds) >= 3
    assert type(loaded.model.readout.out_proj) is nn.Linear
    expected, found = (describe(model, dataset, device="cpu")["U"] for model in (loaded.model, small))
    assert not torch.equal(expected, found)
    assert (expected * found).sum(dim=1).min() > 0.98
    protocol = protocol_for(dataset.items)
    scores = [score({"U": one}, dataset.items, protocol)["U"].mAP for one in (expected, found)]
    assert abs(scores[0] - scores[1]) < 0.1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_the_model_of_the_guide_exports_with_a_dynamic_batch(tmp_path: Path):
    ort = pytest.importorskip("onnxruntime")
    guide = (ROOT / "docs" / "guides" / "build-stmi.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    for block in blocks[: next(i for i, b in enumerate(blocks) if "class STMI" in b) + 1]:
        exec(block, names)
    model = names["model"].eval()
    inputs = (names["images"], names["masks"])
    words = names["words"]

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, images: torch.Tensor, masks: torch.Tensor, words: torch.Tensor) -> Any:
            return self.model(images, masks, words=words)

    count = torch.export.Dim("batch", min=1, max=64)
    with torch.no_grad():
        program = torch.export.export(Whole(), (*inputs, words), dynamic_shapes=({0: count},) * 3)
        expected = model(*(part[:3] for part in inputs), words=words[:3])
    for one, other in zip(expected, program.module()(*(part[:3] for part in inputs), words[:3]), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
    torch.onnx.export(program, f=str(tmp_path / "m.onnx"), external_data=False, verbose=False)
    session = ort.InferenceSession(tmp_path / "m.onnx")
    feeds = [part[:3].numpy() for part in (*inputs, words)]
    found = session.run(None, dict(zip([one.name for one in session.get_inputs()], feeds, strict=True)))
    np.testing.assert_allclose(found[1], expected[1].detach().numpy(), atol=1e-5)
