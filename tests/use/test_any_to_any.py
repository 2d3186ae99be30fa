"""Every subset against every subset: the matrix, concatenated descriptors, and descriptor C."""

import json
from pathlib import Path

import pytest
import torch
import tyro

from examples import evaluate
from examples.any_to_any import as_text, disjoint_mean, score_pair
from examples.stmi.model import STMI, mean_of_present
from examples.towers.vit import VisionTransformer
from examples.train import train
from no_pictures import pictures
from sets import tiny
from stmi_layers.training import Batch, Item, Protocol, read_checkpoint


def items_of(count: int) -> list[Item]:
    return [Item(str(n), n // 2, (None,), (None,), camera=n % 2) for n in range(count)]


def test_a_pair_of_equal_descriptors_is_scored_as_the_protocol_does():
    items, rows = items_of(20), torch.randn(20, 8)
    assert score_pair(rows, rows, items, Protocol()) == Protocol().score(rows, items).mAP
    # Queries and gallery are not exchangeable, and each has rows of its own.
    other = torch.randn(20, 8)
    assert score_pair(rows, other, items, Protocol()) != score_pair(other, rows, items, Protocol())
    assert score_pair(rows, rows.roll(1, dims=0), items, Protocol()) < 1
    exact = torch.eye(10).repeat_interleave(2, dim=0)
    assert score_pair(exact, 2 * exact, items, Protocol()) == 1


def test_the_mean_is_over_the_modalities_that_are_there():
    tokens = torch.tensor([[[2.0], [4.0]], [[6.0], [0.0]], [[0.0], [0.0]]])
    present = torch.tensor([[True, True], [True, False], [False, False]])
    assert mean_of_present(tokens, present).tolist() == [[3.0], [6.0], [0.0]]
    assert torch.equal(mean_of_present(tokens, torch.ones(3, 2, dtype=torch.bool)), mean_of_present(tokens, None))


@pytest.mark.parametrize("reallocation", [True, False])
def test_c_is_one_space_for_all_modalities(reallocation: bool):
    tower = VisionTransformer((16, 16), patch_size=4, dim=16, depth=1, num_heads=2, stem_width=8)
    model = STMI(tower, 2, reallocation=reallocation, num_tokens=2, num_heads=2, common=True, descriptor="C").eval()
    assert (model.headline, model.widths["C"]) == ("C", 16)
    image = torch.rand(1, 1, 3, 16, 16)
    nowhere = torch.full((2,), -1)
    batch = Batch(
        images=torch.cat(
            [torch.cat([image, torch.full_like(image, torch.nan)], dim=1), image.expand(1, 2, -1, -1, -1)]
        ),
        masks=None,
        present=torch.tensor([[True, False], [True, True]]),
        labels=nowhere,
        cameras=nowhere,
        views=nowhere,
        scenes=nowhere,
        texts=None,
        has_text=torch.zeros(2, dtype=torch.bool),
        indices=nowhere,
    )
    with torch.no_grad():
        features = model(batch).features
    assert features["C"].shape == (2, 16)
    assert features["C"].isfinite().all()
    wide = features["U" if reallocation else "G"].unflatten(1, (2, 16))
    torch.testing.assert_close(features["C"][0], wide[0, 0])
    torch.testing.assert_close(features["C"][1], wide[1].mean(dim=0))


def test_the_matrix_by_the_command(data: Path, tmp_path: Path, capsys):
    train(tiny(data, epochs=2, captions="off", common=True, modality_dropout=0.5), tmp_path)
    assert "C" in read_checkpoint(tmp_path / "checkpoint.pt").history[-1]["mAP"]
    found = {}
    for name in ("U", "C"):
        line = ["--checkpoint", tmp_path / "checkpoint.pt", "--any-to-any", "--descriptor", name, "--device", "cpu"]
        with pictures():
            metrics = evaluate.main(tyro.cli(evaluate.Arguments, args=[*map(str, line), "--out", str(tmp_path / name)]))
        content = json.loads((tmp_path / name / "any_to_any.json").read_text())
        matrix = {(tuple(row["query"]), tuple(row["gallery"])): row["mAP"] for row in content["pairs"]}
        assert len(matrix) == 9
        both = ("RGB", "NI")
        assert matrix[both, both] == pytest.approx(metrics[name].mAP, abs=1e-6)
        assert content["disjoint mAP"] == disjoint_mean(matrix)
        assert content["disjoint mAP"] == (matrix[("RGB",), ("NI",)] + matrix[("NI",), ("RGB",)]) / 2
        assert (tmp_path / name / "any_to_any.png").read_bytes().startswith(b"\x89PNG")
        assert as_text(matrix) in capsys.readouterr().out
        found[name] = content["disjoint mAP"]
    # Colours are the same in both modalities of this set: C matches them; parts side by side have nothing in common.
    assert found["U"] < 0.4 < 0.6 < found["C"]
