"""Pictures of comparisons of methods: lines and panels of one scale; several comparisons side by side, with a table."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from examples import comparison_rows
from examples.comparison_rows import Arguments, Panel, draw_rows, main
from examples.comparison_table import column_of


def test_panels_of_a_unit_share_their_scale_and_lines_do_not_hide_each_other(tmp_path: Path, monkeypatch):
    figures = []
    monkeypatch.setattr(comparison_rows, "write_figure", lambda figure, path: figures.append(figure) or [])
    values = {"stmi": [10.0, 12.0], "stmi + masks": [40.0, 41.0], "cnn": [20.0, 22.0]}
    panels = [
        Panel("a", "percent", values),
        Panel("b", "percent", {"cnn": [80.0]}),
        Panel("c", "minutes", {"cnn": [2]}),
    ]
    draw_rows(panels, tmp_path / "figure", title="Title")
    first, second, third = figures[0].axes
    assert first.get_xlim() == second.get_xlim() == (0, pytest.approx(106))
    assert third.get_xlim() == (0, pytest.approx(2.12))
    assert [label.get_text() for label in first.get_yticklabels()] == ["stmi", "cnn"]
    dots = [collection.get_offsets() for collection in first.collections[::2]]
    assert [sorted(group[:, 0]) for group in dots] == list(values.values())
    images, masks, cnn = (group[0, 1] for group in dots)
    assert -0.5 < images < masks < 0.5 < cnn < 1.5
    assert second.collections[0].get_offsets()[0, 1] == 1  # alone on its line


@pytest.mark.usefixtures("pictures")
def test_tables_stand_side_by_side(tmp_path: Path):
    for name, score in (("one", 0.25), ("two", 0.5)):
        result = {"headline": "G", "descriptors": {"G": {"mAP": score, "R1": 0.75}}}
        labels = ("stmi", "stmi + masks", *(("cnn",) if name == "two" else ()))
        runs = [{"label": label, "seed": 0, "result": result} for label in labels]
        (tmp_path / name).mkdir()
        (tmp_path / name / "table.json").write_text(json.dumps({"runs": runs}))
    asked = Arguments((tmp_path / "one", tmp_path / "two"), ("first", "second"), tmp_path / "out", title="Title")
    text = main(asked)
    assert sorted(path.name for path in asked.out.iterdir()) == ["figure.png", "figure.svg", "table.md"]
    drawn = (asked.out / "figure.svg").read_text()
    assert all(f"<!-- {text} -->" in drawn for text in ("Title", "first", "second", "stmi", "with masks", "percent"))
    assert "prefers-color-scheme" in drawn
    assert text == (asked.out / "table.md").read_text()
    assert "| stmi + masks | 25.0 | 50.0 |\n| cnn | - | 50.0 |\n" in text
    assert "Made by\n\n```bash\npython -m examples.comparison_rows" in text
    main(asked)
    assert (asked.out / "figure.svg").read_text() == drawn
    with pytest.raises(ValueError, match="names must be as many as tables; received 1 and 2"):
        Arguments(asked.tables, ("first",), asked.out)


@pytest.mark.usefixtures("pictures")
def test_shares_that_are_lost_without_a_modality(tmp_path: Path):
    def scored(value: float) -> dict:
        return {"headline": "G", "descriptors": {"G": {"mAP": value}}}

    pairs = (("cnn", 0.5, 0.3), ("cnn", 0.5, 0.4), ("stmi", 0.4, 0.44), ("idea", 0.4, 0.4001))  # two gain
    runs = [
        {"label": label, "result": scored(whole) | {"without": {"NI": scored(less)}}} for label, whole, less in pairs
    ]
    (tmp_path / "table.json").write_text(json.dumps({"runs": runs}))
    asked = Arguments((tmp_path,), ("set",), tmp_path / "out", lost_without="NI")
    text = main(asked)
    assert text.startswith("mAP that is lost without NI at test, in percent of that with all, mean ± ")
    assert "| cnn | 30.0 ± 14.1 |" in text.replace("\u00a0", " ")
    assert "| stmi | -10.0 |\n| idea | 0.0 |" in text
    with pytest.raises(ValueError, match=r"lost_without must be a modality .* which is NI; received RGB"):
        main(replace(asked, lost_without="RGB"))


def test_panels_with_losses_below_zero_show_them(tmp_path: Path, monkeypatch):
    figures = []
    monkeypatch.setattr(comparison_rows, "write_figure", lambda figure, path: figures.append(figure) or [])
    draw_rows([Panel("a", "percent", {"cnn": [-3.0, 40.0]})], tmp_path / "figure", title="")
    assert figures[0].axes[0].get_xlim() == pytest.approx((-26.5, 53))


def test_only_scores_and_minutes_of_a_table_are_drawn(tmp_path: Path, monkeypatch):
    drawn = []
    monkeypatch.setattr(comparison_rows, "draw_rows", lambda panels, path, title: drawn.extend(panels))
    result = {"headline": "G", "descriptors": {"G": {"mAP": 0.5, "R1": 0.25}}, "training_cpu_minutes": 2.0}
    columns = {name: column_of(name, {}) for name in ("mAP", "R1", "R5", "CPU minutes")}
    comparison_rows.draw_columns(columns, {"cnn": [result]}, tmp_path, title="")
    assert [(panel.title, panel.values) for panel in drawn] == [
        ("mAP", {"cnn": [50.0]}),
        ("R1", {"cnn": [25.0]}),
        ("CPU minutes", {"cnn": [2.0]}),
    ]
