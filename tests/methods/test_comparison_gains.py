"""What an input is worth to each method, from the tables of comparisons."""

import json
import sys
from pathlib import Path

import pytest

from examples import comparison_gains
from examples.comparison_gains import Arguments, main


def table(folder: Path, **scores: list[float]) -> Path:
    runs = [
        {
            "label": label.replace("_", " + "),
            "seed": seed,
            "result": {"headline": "G", "descriptors": {"G": {"mAP": score}}},
        }
        for label, values in scores.items()
        for seed, score in enumerate(values)
    ]
    folder.mkdir()
    (folder / "table.json").write_text(json.dumps({"runs": runs}))
    return folder


@pytest.fixture
def more(tmp_path: Path) -> Path:
    scores = {"stmi": [0.1, 0.2, 0.3], "stmi_masks": [0.3, 0.3, 0.2], "stmi_masks_captions": [0.5] * 3, "cnn": [0.5]}
    return table(tmp_path / "more", **scores)


def cells(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip().replace("\xa0", " ") for cell in line.split("|")[1:-1]] for line in lines]


def test_gains_are_those_of_a_seed_against_itself(more: Path, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["gains", "--inputs", "masks"])
    monkeypatch.setattr(comparison_gains.compare, "DOCS", tmp_path / "docs")
    text = main(Arguments((more,), ("parcels",), tmp_path / "out", docs="gains"))
    assert cells(text) == [["method", "parcels"], ["stmi", "6.7 ± 15.3 (2/3)"]]
    assert "python -m examples.comparison_gains --inputs masks\n" in text
    assert (tmp_path / "out/table.md").read_text() == (tmp_path / "docs/tables/results-gains.md").read_text() == text


def test_rows_of_another_comparison_and_of_other_inputs(more: Path, tmp_path: Path):
    less = table(tmp_path / "less", stmi_masks=[0.2, 0.2], cnn=[0.25])
    both, names = (more, more), ("one", "two")
    against = Arguments(both, names, tmp_path / "out", inputs="masks", without="masks", against=(less, more))
    assert cells(main(against))[1:] == [["stmi", "10.0 (2/2)", "0.0 (0/3)"]]
    captions = Arguments((more,), ("one",), tmp_path / "out", inputs="masks+captions", without="masks")
    assert cells(main(captions))[1:] == [["stmi", "23.3 ± 5.8 (3/3)"]]


def test_gains_refuse_tables_that_do_not_pair(more: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="names must be as many as tables; received 2 and 1"):
        Arguments((more,), ("one", "two"), tmp_path)
    with pytest.raises(ValueError, match="against must be as many as tables; received 2 and 1"):
        Arguments((more,), ("one",), tmp_path, against=(more, more))
    with pytest.raises(ValueError, match="received tables without captions"):
        main(Arguments((more,), ("one",), tmp_path, inputs="captions"))
