"""Measures of semantic tokens, on tokens that all images share and on tokens that differ between images."""

import json
from pathlib import Path

import pytest
import torch

from examples.restore import load_model
from examples.stmi import tokens
from examples.stmi.model import STMI
from examples.stmi.tokens import as_text, measure
from examples.train import build_model, train
from given_tower import GivenTower, batch_of
from sets import tiny, write_set
from stmi_layers.training import Machine

MACHINE = Machine(device="cpu", threads=1, quiet=True)


def model_of(patches: torch.Tensor, globals_: torch.Tensor) -> STMI:
    torch.manual_seed(0)
    return STMI(GivenTower(patches, globals_), 2, num_tokens=3, num_heads=2).eval()


def test_equal_images_vary_by_nothing_and_equal_patches_are_read_alike():
    patches = torch.randn(1, 2, 1, 8).expand(6, 2, 5, 8)
    found = measure(model_of(patches, torch.randn(1, 2, 8).expand(6, 2, 8)), [batch_of(6, 2)])
    assert found["varies"] == {"patches": pytest.approx(0, abs=1e-4), "class": pytest.approx(0, abs=1e-4)} | {
        "semantic": pytest.approx(0, abs=1e-4)
    }
    assert found["entropy"] == pytest.approx(100)


def test_what_varies_is_told_from_what_is_common():
    generator = torch.Generator().manual_seed(1)
    patches = torch.randn(40, 2, 5, 8, generator=generator)
    found = measure(model_of(patches, torch.randn(40, 2, 8, generator=generator)), [batch_of(40, 2)])
    assert found["varies"]["patches"] > 90
    assert found["entropy"] < 99
    shifted = measure(model_of(patches + 30, torch.ones(40, 2, 8)), [batch_of(40, 2)])
    assert 0 < shifted["varies"]["patches"] < 1
    tokens_at, deviations_at = zip(*(found["edge_size"][threshold] for threshold in tokens.THRESHOLDS), strict=True)
    for sizes in (tokens_at, deviations_at):
        assert 6 >= sizes[0] >= sizes[-1] >= 1
        assert list(sizes) == sorted(sizes, reverse=True)
    alike = measure(model_of(patches, torch.arange(40.0)[:, None, None].expand(40, 2, 8)), [batch_of(40, 2)])
    assert alike["distance"] == pytest.approx([4.0, 4.2])  # 1 in 16 numbers; at both ends the other is 2 away
    text = as_text(found)
    assert "hyperedge at 0.5, of 6 nodes" in text
    assert f"patches {found['varies']['patches']:.3g} %" in text
    assert json.loads(json.dumps(found))["nodes"] == 6


def test_the_untrained_model_is_the_one_of_the_seed_with_the_statistics_of_the_split(tmp_path: Path):
    run = tiny(write_set(tmp_path / "set"), captions="off", epochs=1, seed=3)
    train(run, tmp_path / "run")
    found = [
        tokens.main(tokens.Arguments(tmp_path / "run" / "checkpoint.pt", untrained=untrained))
        for untrained in (False, True)
    ]
    assert found[0] != found[1]
    assert json.loads((tmp_path / "run" / "untrained.json").read_text())["varies"] == found[1]["varies"]
    batch = batch_of(5, 2)
    model = tokens.untrained_model(tmp_path / "run" / "checkpoint.pt", [batch], MACHINE)
    fresh, _ = build_model(run, load_model(tmp_path / "run" / "checkpoint.pt", machine=MACHINE).facts)
    torch.testing.assert_close(dict(model.named_parameters()), dict(fresh.named_parameters()))
    with torch.no_grad():
        seen = fresh.train()(batch).features
        for name, feature in model(batch).features.items():  # a variance of the batch is biased, a running one is not
            torch.testing.assert_close(feature, seen[name], rtol=0.1, atol=0.1)


def test_a_run_of_another_method_is_refused(monkeypatch: pytest.MonkeyPatch):
    class Other:
        model, dataset, run = torch.nn.Linear(1, 1), None, type("run", (), {"method": "demo"})

    monkeypatch.setattr(tokens, "restore", lambda checkpoint, machine: Other)
    with pytest.raises(ValueError, match="checkpoint must be that of STMI with STR; received one of demo"):
        tokens.main(tokens.Arguments(Path("checkpoint.pt")))
