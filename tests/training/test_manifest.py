"""Manifests: a split as one table, in CSV and in Parquet."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark_folders import noise
from stmi_layers.training import Data, load_split, protocol_for, read_split
from stmi_layers.training.layouts import find_set
from stmi_layers.training.protocol import column
from stmi_layers.training.record import Item
from stmi_layers.training.splits import list_items

HEAD = "item,identity,camera,split,RGB,TI,mask,mask_TI,caption,caption_RGB,day"
ROWS = (
    "first,red truck,2,train,visible/a.jpg,thermal/a.png,masks/a.png,,A truck.,,mon",
    ",007,,train,visible/b.jpg,,,,,Blue.,",
    ",-1,1,query,visible/c.jpg,thermal/c.png,masks/c.png,masks/t.png,,,tue",
    ",7,1,gallery,visible/d.jpg,thermal/d.png,,,,,tue",
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in ("visible/a.jpg", "visible/b.jpg", "visible/c.jpg", "visible/d.jpg"):
        noise(tmp_path / path)
    for name in "acd":
        noise(tmp_path / "thermal" / f"{name}.png")
    for name in "act":
        (tmp_path / "masks").mkdir(exist_ok=True)
        Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(tmp_path / "masks" / f"{name}.png")
    return tmp_path


def write(root: Path, *rows: str, head: str = HEAD) -> Path:
    (root / "manifest.csv").write_text("\n".join([head, *rows]), encoding="utf-8-sig")
    return root / "manifest.csv"


def expected(root: Path) -> Item:
    return Item(
        "first",
        "red truck",
        (root / "thermal" / "a.png", root / "visible" / "a.jpg"),
        (root / "masks" / "a.png",) * 2,
        camera=2,
        captions=("A truck.",),
        layout="manifest",
        columns={"day": "mon"},
    )


def test_a_manifest_says_everything(root: Path) -> None:
    file = write(root, *ROWS)
    for place in (root, file):
        found = find_set(place)
        assert (found.layout, found.splits, found.missing) == ("manifest", ("train", "test"), ())
        assert found.list_modalities("train") == ["RGB", "TI"]
        assert f"the manifest {file}, modalities are its columns RGB, TI" in found.rule
    items = list_items(root, "train", ("TI", "RGB"), captions="optional", missing_modality="absent")
    assert items[0] == expected(root)
    second = items[1]
    assert (second.name, second.identity, second.camera) == ("visible/b", "007", None)
    assert (second.images, second.masks) == ((None, root / "visible" / "b.jpg"), (None, None))
    assert (second.captions, second.columns) == (("", "Blue."), {})
    test = read_split(root, "test", ("RGB", "TI"))
    assert [(item.role, item.identity) for item in test] == [("query", -1), ("gallery", 7)]
    assert test[0].masks == (root / "masks" / "c.png", root / "masks" / "t.png")
    assert column(test[1], "day") == "tue"
    assert {item.captions for item in test} == {()}
    assert len(list_items(root, "query", ("TI",))) == 1


def test_a_manifest_trains_and_is_scored(root: Path) -> None:
    write(root, *ROWS)
    data = Data(root, ("RGB", "TI"), (8, 8), missing_modality="absent", masks="none", match="identity", drop="name")
    dataset = load_split(data, "train")
    assert dataset.identities == ["007", "red truck"]
    assert [sample.present.tolist() for sample in (dataset[0], dataset[1])] == [[True, True], [True, False]]
    items = load_split(data, "test").items
    assert protocol_for(items, data).describe(items).startswith("the query split queries the gallery, 1 against 1")
    (root / "manifest.csv").write_text("split,identity,RGB\ntrain,,visible/a.jpg\n")
    with pytest.raises(ValueError, match="1 items to train on have no identity: visible/a"):
        load_split(Data(root, ("RGB",), masks="none"), "train")


def test_parquet_says_the_same(root: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet  # pyright: ignore[reportMissingImports]

    columns = [list(cells) for cells in zip(*(row.split(",") for row in ROWS), strict=True)]
    named: dict[str, list] = dict(zip(HEAD.split(","), columns, strict=True))
    named["camera"] = [int(cell) if cell else None for cell in named["camera"]]
    named["caption"] = [cell or None for cell in named["caption"]]
    for name in ("manifest.parquet", "mine.pq"):
        parquet.write_table(arrow.table(named), root / name)
    for place in (root, root / "manifest.parquet", root / "mine.pq"):
        items = list_items(place, "train", ("TI", "RGB"), captions="optional", missing_modality="absent")
        assert items[0] == expected(root)
        assert items[1].identity == "007"
    (root / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"manifest\.parquet cannot be read as Parquet: "):
        find_set(root)


def test_numbers_of_other_programs_are_numbers(root: Path) -> None:
    """A column with a missing value has become one of floating numbers."""
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "split": ["train"] * 2,
        "RGB": ["a.jpg", "b.jpg"],
        "identity": [-1.0, 7.0],
        "camera": [2.0, float("nan")],
    }
    parquet.write_table(arrow.table(columns), root / "manifest.parquet")
    write(root, "train,a.jpg,-1.0,2.0", "train,b.jpg,7.0,", head="split,RGB,identity,camera")
    for place in (root / "manifest.csv", root / "manifest.parquet"):
        items = list_items(place, "train", ("RGB",))
        assert [(item.identity, item.camera) for item in items] == [(-1, 2), (7, None)]


def test_parquet_without_pyarrow_says_what_to_install(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (root / "manifest.parquet").write_bytes(b"PAR1")
    with pytest.raises(ImportError, match=r"manifest\.parquet needs pyarrow: pip install pyarrow, or write"):
        find_set(root)


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        (
            "identity,RGB",
            ["1,a.jpg"],
            "must have the column split, and no column name twice; it has identity,",
        ),
        ("split;RGB", ["train;a.jpg"], "must separate its columns by commas; it has semicolons"),
        ("split,identity", ["train,1"], "must have a column of paths of images per modality; it has split, identity"),
        ("split,RGB", ["train,a.jpg", ",b.jpg"], "1 rows have no split"),
        (
            "split,RGB,day",
            ["train,a.jpg,mon", "train,b.jpg"],
            "1 rows have more or fewer cells than .*, the first is 3",
        ),
        ("split,RGB,TI", ["train,a.jpg,b.png", "train,,"], "row 3: no image in RGB, TI"),
        ("split,RGB,camera", ["train,a.jpg,left"], "row 2: camera must be a whole number .*; received 'left'"),
        ("split,RGB,identity", [f"train,a.jpg,{9**30}"], "row 2: identity must be a whole number of at most 18 digits"),
        ("split,RGB", ["train,a.jpg", "train,a.jpg"], "1 items of train have several rows: a"),
        ("split,item,RGB", ["train,..,a.jpg"], r"row 2: item must be a name or a relative path; received '\.\.'"),
        ("split,item,RGB", ["train,C:x,a.jpg"], r"received 'C:x'"),
        ("split,RGB,RGB", ["train,a.jpg,b.jpg"], "it has split, RGB, RGB"),
    ],
)
def test_manifests_that_break_the_rules_are_named(root: Path, head: str, rows: list[str], message: str) -> None:
    file = write(root, *rows, head=head)
    modalities = [name for name in ("RGB", "TI") if name in head] or ["RGB"]
    with pytest.raises(ValueError, match=f"{file}.*{message}"):
        list_items(root, "train", modalities[:1] if "TI" not in head else modalities, missing_modality="absent")


def test_what_a_manifest_lacks_is_named(root: Path) -> None:
    write(root, *ROWS)
    with pytest.raises(FileNotFoundError, match=r"manifest\.csv has no split 'val'; it has train, query, gallery"):
        list_items(root, "val", ("RGB",))
    with pytest.raises(FileNotFoundError, match=r"manifest\.csv has no modality 'NI'; it has RGB, TI"):
        list_items(root, "train", ("NI",))
    (root / "thermal" / "c.png").unlink()
    with pytest.raises(
        ValueError, match=r"1 of 6 files cannot be used.*\n  thermal/c\.png: cannot be decoded \(No such"
    ):
        read_split(root, "test", ("RGB", "TI"))
    write(root, ROWS[0], ROWS[1].replace("Blue.", ""))
    with pytest.raises(ValueError, match=r"1 of 2 items have no caption: visible/b; add them, or make"):
        list_items(root, "train", ("RGB",), captions="required")


def test_names_lead_nowhere_else(root: Path) -> None:
    write(root, "train,../../etc/x.jpg", "train,/tmp/y.jpg", head="split,RGB")
    assert [item.name for item in list_items(root, "train", ("RGB",))] == ["etc/x", "tmp/y"]
