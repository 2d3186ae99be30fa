"""The whole model of every method but STMI as ONNX and as pt2, by the function behind the command."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from examples import export, exported
from examples.exported import open_onnx
from examples.methods import METHODS
from examples.quantised import quantise
from examples.restore import Loaded
from examples.serving import Serving, example_of
from method_batches import SIZE, WORDS, random_batch, small_model, without_zeros
from sets import tiny
from stmi_layers.training import Facts

MODALITIES = ("RGB", "TI")
OTHERS = [method for method in METHODS if method != "stmi"]  # `test_export.py` holds STMI to the same


@pytest.mark.filterwarnings("ignore")  # of torch about its own quantisation
@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_quantised_whole_in_torch(method: str):
    model = without_zeros(small_model(method, 2)).eval()
    batch = random_batch(4, 2, model=model)
    small = quantise(model, batch)
    assert any("quantized" in type(module).__module__ for module in small.modules())
    with torch.no_grad():
        expected, found = model(batch).features, small(batch).features
    assert not torch.equal(expected[next(iter(expected))], found[next(iter(found))])
    for name, value in expected.items():
        assert torch.cosine_similarity(value, found[name]).min() > 0.95, name


@pytest.mark.slow
@pytest.mark.parametrize("method", OTHERS)
def test_every_method_exports_whole(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("onnxruntime")
    programs: list[Any] = []  # traced once, for both formats
    trace = exported.program_of
    monkeypatch.setattr(
        exported,
        "program_of",
        lambda *given: programs[0] if programs else programs.append(trace(*given)) or programs[0],
    )
    run = tiny(Path(), method, modalities=MODALITIES, masks="given")
    facts = Facts(MODALITIES, SIZE, num_identities=3, words=WORDS)
    model = without_zeros(run.build(facts)).train()
    loaded = Loaded(run, model, facts, [])
    for kind in ("onnx", "pt2"):
        report = export.export(loaded, tmp_path / f"model.{kind}", export.Arguments(tmp_path / "c.pt", format=kind))
        assert report["batches compared"] == "3, 1, 2, 5"
        assert float(report["largest difference"]) < 1e-5
        assert float(report["least cosine"]) > 0.9999
    assert model.training
    serving = Serving(model.eval(), run)
    assert serving.inputs == ["images", "masks", "present"]
    example = example_of(serving, facts, 7, seed=9)
    run_file = open_onnx(tmp_path / "model.onnx")
    found = run_file(example)
    with torch.no_grad():
        expected = serving(*example.values())
    assert len(found) == len(model.widths) + (model.headline not in model.widths)
    for name, one, other in zip(serving.outputs, expected, found, strict=True):
        np.testing.assert_allclose(other, one.numpy(), atol=1e-5, err_msg=name)
    # What stands in an absent slot does not count, and what is there does.
    absent = ~example["present"]
    assert absent.any()
    other = example | {"images": example["images"].masked_fill(absent[..., None, None, None], torch.nan)}
    other |= {"masks": example["masks"] ^ absent[..., None, None]}
    np.testing.assert_array_equal(run_file(other)[0], found[0])
    everything = example | {"present": torch.ones_like(absent)}
    assert not np.allclose(run_file(everything)[0], found[0], atol=1e-3)
