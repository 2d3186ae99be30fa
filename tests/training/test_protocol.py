"""Protocols against what they say: who queries, what is dropped, and which columns decide."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark_folders import noise, rgbnt201
from stmi_layers.training.dataset import Item
from stmi_layers.training.protocol import Protocol, column, protocol_for
from stmi_layers.training.splits import list_items


def item(identity: int, camera: int, scene: int | None = None, role="both", layout="folders", **columns: str) -> Item:
    return Item("name", identity, camera, (None,), (None,), None, scene, None, role, layout, columns)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=12), st.data())
def test_skipped_queries_and_scores_are_those_of_the_definition(rows, data) -> None:
    drop = data.draw(st.sampled_from(["camera", "scene"]))
    items = [item(identity, camera, scene) for identity, camera, scene in rows]
    protocol = Protocol(drop=drop)
    answers = [
        [other for other in items if other.identity == one.identity and getattr(other, drop) != getattr(one, drop)]
        for one in items
    ]
    skipped = sum(not matches for matches in answers)
    assert protocol.count_skipped(items) == skipped
    assert f"; {skipped} of {len(items)} queries skipped" in protocol.describe(items)
    if skipped < len(items):
        scores = protocol.score(torch.randn(len(items), 4), items)
        assert (scores.num_queries, scores.num_skipped) == (len(items), skipped)


def test_a_protocol_drops_by_its_own_column() -> None:
    """One dimension: the nearest entry is of the query's scene, but of another camera."""
    items = [item(1, 1, 1, "query"), item(1, 2, 1, "gallery"), item(2, 1, 2, "gallery"), item(1, 1, 2, "gallery")]
    descriptor = torch.tensor([[0.0], [1.0], [2.0], [3.0]])
    assert Protocol(drop="camera").score(descriptor, items).mAP == 1
    assert Protocol(drop="scene").score(descriptor, items).mAP == 0.5
    assert Protocol(drop="name").count_skipped(items) == 1
    shown, best = Protocol(drop="scene").best_matches(descriptor, items, queries=6, k=5)
    assert (shown.tolist(), best.tolist()) == ([0], [[2, 3, -1]])


def test_reranking_is_an_option_of_every_protocol() -> None:
    items = [item(index % 4, index // 4) for index in range(24)]
    descriptor = torch.nn.functional.one_hot(torch.arange(24) % 4).float() + 0.1 * torch.randn(24, 4)
    assert Protocol().score(descriptor, items, rerank=True).mAP == pytest.approx(1)
    assert Protocol().score(descriptor, items).mAP == pytest.approx(1)


def test_the_layout_chooses_the_protocol_and_one_may_choose_another() -> None:
    assert protocol_for([item(1, 1, layout="MSVR310")]) == Protocol("identity", "scene")
    assert protocol_for([item(1, 1, layout="RGBNT201")], (3,)) == Protocol("identity", "camera", (3,))
    assert protocol_for([item(1, 1, layout="MSVR310")], drop="view", match="name") == Protocol("name", "view")


def test_columns_of_ones_own(tmp_path: Path) -> None:
    rgbnt201(tmp_path, "test", 4, range(2), range(1, 3), noise)
    names = [one.name for one in list_items(tmp_path, "test", ("RGB",))]
    days = ["mon", "tue", "mon", "wed"]
    lines = ["item,model,day", *(f"{name}.jpg,m{name[:6]},{day}" for name, day in zip(names, days, strict=True))]
    (tmp_path / "items.csv").write_text("\n".join(lines))
    items = list_items(tmp_path, "test", ("RGB",))
    assert [column(one, "day") for one in items] == days
    protocol = protocol_for(items, match="model", drop="day")
    match, drop = protocol.codes(items)
    assert (match.tolist(), drop.tolist()) == ([0, 0, 1, 1], [0, 1, 0, 2])
    assert "same model and day dropped; 0 of 4 queries skipped" in protocol.describe(items)
    with pytest.raises(
        ValueError, match=r"columns of the set, name, identity, camera, model, day; received 'week'; .*--match, --drop"
    ):
        protocol_for(items, drop="week").codes(items)
    with pytest.raises(ValueError, match="received 'scene'"):
        protocol_for(items, drop="scene").codes(items)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,day\na,b", "must have the column item and others .*; it has name, day"),
        ("item,camera\na,b", "it has item, camera, of which camera is known from the file names"),
        ("item,day,day\na,b,c", "it has item, day, day"),
        ("item,day\n000000_cam1_0_00.jpg,mon", "1 items have no line, or an incomplete one: 000001_cam2_0_00"),
        ("item,day\n000000_cam1_0_00.jpg,mon\n000001_cam2_0_00", "incomplete one: 000001_cam2_0_00"),
        ("item,day\n000000_cam1_0_00.jpg,mon\n000000_cam1_0_00,mon", "1 items have several lines: 000000_cam1_0_00"),
    ],
)
def test_column_errors(tmp_path: Path, text: str, message: str) -> None:
    rgbnt201(tmp_path, "test", 2, range(2), range(1, 3), noise)
    (tmp_path / "items.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        list_items(tmp_path, "test", ("RGB",))
