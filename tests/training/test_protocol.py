"""Protocols: query images, dropped gallery entries, and the columns that decide."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from benchmark_folders import noise, rgbnt201
from painted_sets import read, write_painted
from stmi_layers.training.protocol import Protocol, column, protocol_for, query_gallery
from stmi_layers.training.record import Item
from stmi_layers.training.settings import Data
from stmi_layers.training.splits import list_items


def item(
    identity: int | str, camera: int | None, scene: int | None = None, role="both", layout="folders", **columns: str
) -> Item:
    return Item(
        "name", identity, (None,), (None,), camera=camera, scene=scene, role=role, layout=layout, columns=columns
    )


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


def test_the_layout_chooses_the_protocol_and_settings_may_choose_another() -> None:
    assert protocol_for([item(1, None, layout="MSVR310")]) == Protocol("identity", "scene")
    data = Data(Path("x"), query_cameras=(3,), junk=(-1,))
    assert protocol_for([item(1, 1, layout="RGBNT201")], data) == Protocol("identity", "camera", (3,), (-1,))
    data = Data(Path("x"), drop="view", match="name")
    assert protocol_for([item(1, 1, layout="MSVR310")], data) == Protocol("name", "view")
    assert protocol_for([item(1, None, layout="WMVEID863")]) == Protocol("identity", "view")


def test_columns_of_ones_own(tmp_path: Path) -> None:
    rgbnt201(tmp_path, "test", 4, range(2), range(1, 3), noise)
    names = [one.name for one in list_items(tmp_path, "test", ("RGB",))]
    days = ["mon", "tue", "mon", "wed"]
    lines = ["item,model,day", *(f"{name}.jpg,m{name[:6]},{day}" for name, day in zip(names, days, strict=True))]
    (tmp_path / "items.csv").write_text("\n".join(lines))
    items = list_items(tmp_path, "test", ("RGB",))
    assert [column(one, "day") for one in items] == days
    protocol = Protocol("model", "day")
    match, drop = protocol.codes(items)
    assert (match.tolist(), drop.tolist()) == ([0, 0, 1, 1], [0, 1, 0, 2])
    assert "same model and day dropped; 0 of 4 queries skipped" in protocol.describe(items)
    with pytest.raises(
        ValueError,
        match=r"columns of the set, name, identity, camera, model, day; received 'week', which 000000_cam",
    ):
        Protocol(drop="week").codes(items)
    with pytest.raises(ValueError, match="received 'scene'"):
        Protocol(drop="scene").codes(items)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,day\na,b", "must have the column item, and .*; it has name, day"),
        ("item;day\na;b", "items.csv must separate its columns by commas; it has semicolons"),
        ("item\tday\na\tb", "it has tabs"),
        ("item,f\xfcr\na,b".encode("latin-1"), r"items.csv is not UTF-8: byte 6 is 0xfc; save it as CSV in UTF-8"),
        (b"i\0tem", "items.csv .*"),
        ('item,day\n"a,b', "items.csv is not a CSV table: unexpected end of data"),
        ("item,camera\na,b", "it has item, camera, of which camera is known from the file names"),
        ("item,day,day\na,b,c", "it has item, day, day"),
        ("item,day\n000000_cam1_0_00.jpg,mon", "1 items have no line: 000001_cam2_0_00"),
        (
            "item,day\n000000_cam1_0_00.jpg,mon\n000001_cam2_0_00",
            "1 rows have more or fewer cells .*, the first is 3",
        ),
        ("item,day\n000000_cam1_0_00.jpg,mon\n000000_cam1_0_00,mon", "1 items have several lines: 000000_cam1_0_00"),
    ],
)
def test_column_errors(tmp_path: Path, text: str | bytes, message: str) -> None:
    rgbnt201(tmp_path, "test", 2, range(2), range(1, 3), noise)
    (tmp_path / "items.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message):
        list_items(tmp_path, "test", ("RGB",))


def test_query_and_gallery(tmp_path: Path) -> None:
    items = read(write_painted(tmp_path))
    query, gallery = query_gallery(items, (2,))
    assert (query.tolist(), gallery.tolist()) == ([1, 3, 5], [0, 2, 4])
    assert all(part.tolist() == list(range(6)) for part in query_gallery(items))
    with pytest.raises(ValueError, match=r"query_cameras must be cameras of the items, \[1, 2\]; received \[4\]"):
        query_gallery(items, (2, 4))
    with pytest.raises(ValueError, match=r"leave a camera for the gallery; received all of them, \[1, 2\]"):
        query_gallery(items, (1, 2))


def test_a_byte_order_mark_is_no_part_of_a_column(tmp_path: Path) -> None:
    rgbnt201(tmp_path, "test", 1, range(1), range(1, 2), noise)
    (tmp_path / "items.csv").write_text("item,day\n000000_cam1_0_00,mon", encoding="utf-8-sig")
    assert list_items(tmp_path, "test", ("RGB",))[0].columns == {"day": "mon"}


def test_junk_is_neither_right_nor_wrong_and_asks_nothing() -> None:
    """Along a line: a query, its junk neighbour, and its match behind that."""
    items = [item(7, 1), item(-1, 2), item(7, 2), item(-1, 1), item("junk", 2)]
    descriptor = torch.tensor([[0.0], [0.1], [0.2], [0.3], [0.15]])
    assert Protocol().score(descriptor, items).mAP < 1
    protocol = Protocol(junk=(-1, "junk"))
    scores = protocol.score(descriptor, items)
    assert (scores.mAP, scores.num_queries) == (1, 2)
    assert [part.tolist() for part in protocol.split(items)] == [[0, 2], [0, 2]]
    assert "2 against 2; same identity and camera dropped; 3 junk items ignored; 0 of 2" in protocol.describe(items)
    shown, best = protocol.best_matches(descriptor, items, queries=9, k=3)
    assert (shown.tolist(), best.tolist()) == ([0, 2], [[2, -1], [0, -1]])
    with pytest.raises(ValueError, match=r"junk must leave a query and a gallery entry; received \[7, -1, 'junk'\]"):
        Protocol(junk=(7, -1, "junk")).score(descriptor, items)
