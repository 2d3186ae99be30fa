"""Layouts of the public benchmarks, with their true file names and true numbers of files."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark_folders import EmptyFiles, msvr310, noise, panels, rgbnt201, wmveid863
from stmi_layers.training.checks import find_defect
from stmi_layers.training.collation import collate
from stmi_layers.training.dataset import MultiModalDataset
from stmi_layers.training.images import read_image, read_mask
from stmi_layers.training.layouts import find_set, recognise
from stmi_layers.training.protocol import protocol_for, query_gallery
from stmi_layers.training.record import Item, Panel, joined
from stmi_layers.training.splits import list_items, read_split

ALL = ("RGB", "NI", "TI")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> EmptyFiles:
    return EmptyFiles(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that are opened from now on."""
    files: list[Path] = []
    really = Image.open
    monkeypatch.setattr(Image, "open", lambda file, **options: files.append(Path(file.name)) or really(file, **options))
    return files


def figures(items: list[Item]) -> tuple[int, int, int]:
    """Triplets, identities, and cameras or views."""
    places = {item.view if item.camera is None else item.camera for item in items}
    return len(items), len({item.identity for item in items}), len(places)


def test_rgbnt201_has_its_numbers(tmp_path: Path, empty: EmptyFiles, opened: list[Path]) -> None:
    rgbnt201(tmp_path, "train_171", 3951, range(171), range(1, 5), empty)
    rgbnt201(tmp_path, "test", 836, range(228, 258), range(1, 3), empty)
    assert recognise(tmp_path) == "RGBNT201"
    train, test = (list_items(tmp_path, split, ALL) for split in ("train", "test"))
    assert (figures(train), figures(test)) == ((3951, 171, 4), (836, 30, 2))
    assert {item.role for item in test} == {"both"}
    query, gallery = query_gallery(test)
    assert len(query) == len(gallery) == 836
    item = train[0]
    assert item.images == tuple(tmp_path / "train_171" / name / f"{item.name}.jpg" for name in ALL)
    assert (item.layout, item.scene, item.view, item.masks) == ("RGBNT201", None, None, (None,) * 3)
    assert protocol_for(test).describe(test) == (
        "all query all, 836 against 836; same identity and camera dropped; 0 of 836 queries skipped"
    )
    assert opened == []


def write_panels(count: int):
    def write(path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.repeat(np.arange(1, count + 1, dtype=np.uint8) * 50, 256)[None].repeat(128, axis=0)
        Image.fromarray(pixels).save(path, quality=95)

    return write


def test_rgbnt100_has_its_numbers(tmp_path: Path, empty: EmptyFiles, opened: list[Path]) -> None:
    base = tmp_path / "rgbir"
    panels(base, "bounding_box_train", 8675, range(1, 51), range(1, 9), empty)
    panels(base, "query", 1715, range(51, 101), range(1, 9), empty)
    panels(base, "bounding_box_test", 8575, range(51, 101), range(1, 9), empty)
    first = min((base / "bounding_box_train").iterdir())
    first.unlink()
    write_panels(3)(first)
    assert recognise(tmp_path) == recognise(base) == "RGBNT100"
    train, test = (list_items(tmp_path, split, ALL) for split in ("train", "test"))
    query, gallery = ([test[index] for index in part.tolist()] for part in query_gallery(test))
    assert [figures(items) for items in (train, query, gallery)] == [(8675, 50, 8), (1715, 50, 8), (8575, 50, 8)]
    assert query == list_items(tmp_path, "query", ALL)
    assert train[0].images == tuple(Panel(first, index, 3) for index in range(3))
    assert protocol_for(test).describe(test).startswith("the query split queries the gallery, 1715 against 8575; same")
    assert set(opened) == {first}


def test_panels_are_read_apart_and_wrong_widths_are_named(tmp_path: Path) -> None:
    panels(tmp_path, "bounding_box_train", 4, range(548, 550), range(1, 3), write_panels(3))
    items = read_split(tmp_path, "train", ("TI", "RGB"))
    assert (items[0].name, items[0].identity, items[0].camera) == ("0548_c0001_000", 548, 1)
    image = items[0].images[0]
    assert image is not None
    assert read_image(image).size == (256, 128)
    images, _ = MultiModalDataset(items, (12, 24), masks="none").picture(0)
    assert np.abs(images[0].astype(int) - 150).max() <= 2
    assert np.abs(images[1].astype(int) - 50).max() <= 2
    wrong = tmp_path / "bounding_box_train" / "0549_c0002_000.jpg"
    noise(wrong, (128, 512))
    with pytest.raises(
        ValueError, match=r"1 of 4 files .*\n.*0549_c0002_000.* 512 pixels wide; 3 panels of 256 are 768"
    ):
        read_split(tmp_path, "train", ALL)


def test_rgbn300_has_two_panels(tmp_path: Path) -> None:
    for folder, identities in (("bounding_box_train", range(150)), ("query", range(150, 300))):
        panels(tmp_path / "rgbir", folder, 300, identities, range(1, 9), write_panels(2))
    assert recognise(tmp_path) == "RGBN300"
    items = list_items(tmp_path, "train", ("RGB", "NI"))
    assert figures(items) == (300, 150, 8)
    assert {image.count for item in items for image in item.images if isinstance(image, Panel)} == {2}
    with pytest.raises(FileNotFoundError, match=r"no modality folder 'TI'; it has RGB, NI"):
        list_items(tmp_path, "train", ALL)
    with pytest.raises(FileNotFoundError, match="split 'test' of RGBN300 lacks its folder bounding_box_test in"):
        list_items(tmp_path, "test", ("RGB", "NI"))
    with pytest.raises(ValueError, match="split must be one of train, test, query, gallery in RGBN300; received 'val'"):
        list_items(tmp_path, "val", ("RGB", "NI"))


def test_msvr310_has_its_numbers_and_drops_scenes(tmp_path: Path, empty: EmptyFiles, opened: list[Path]) -> None:
    msvr310(tmp_path, "bounding_box_train", 1032, range(155), range(30), range(8), empty)
    msvr310(tmp_path, "bounding_box_test", 1055, range(155, 310), range(30), range(8), empty)
    msvr310(tmp_path, "query3", 591, range(155, 207), range(30), range(8), empty)
    assert recognise(tmp_path) == "MSVR310"
    parts = {split: list_items(tmp_path, split, ALL) for split in ("train", "gallery", "query")}
    assert {split: figures(items) for split, items in parts.items()} == {
        "train": (1032, 155, 8),
        "gallery": (1055, 155, 8),
        "query": (591, 52, 8),
    }
    assert {item.scene for items in parts.values() for item in items} == set(range(30))
    assert {item.view for items in parts.values() for item in items} == set(range(8))
    item = next(item for item in parts["query"] if item.name == "0155_s000_v0_000")
    assert (item.identity, item.scene, item.view, item.camera) == (155, 0, 0, None)
    assert item.images[1] == tmp_path / "query3" / "0155" / "ni" / "0155_s000_v0_000.jpg"
    test = list_items(tmp_path, "test", ALL)
    assert protocol_for(test).drop == "scene"
    assert "same identity and scene dropped" in protocol_for(test).describe(test)
    assert opened == []


@pytest.fixture
def wmveid(tmp_path: Path) -> Path:
    for folder, identities in (("train", range(483, 487)), ("query", range(2)), ("test", range(4))):
        wmveid863(tmp_path, folder, 12, identities, range(1, 9), noise)
    return tmp_path


def test_wmveid863_matches_its_folders_by_name(wmveid: Path) -> None:
    assert recognise(wmveid) == "WMVEID863"
    items = list_items(wmveid, "train", ALL)
    assert figures(items) == (12, 4, 6)
    first = items[0]
    assert (first.name, first.identity, first.view, first.camera) == ("0483_v1_n1_s999_000", 483, 1, None)
    assert (first.scene, first.columns) == (999, {"night": "1"})
    (wmveid / "train" / "0483" / "ni" / f"{first.name}.jpg").unlink()
    noise(wmveid / "train" / "0483" / "th" / "0483_v7_n0_s999_104.jpg")
    with pytest.raises(ValueError, match=rf"train: 3 images are missing .*RGB/0483_v7_n0_s999_104, NI/{first.name}"):
        list_items(wmveid, "train", ALL)
    with pytest.warns(UserWarning, match="3 images are missing .*; 2 of 13 items are left out"):
        complete = list_items(wmveid, "train", ALL, missing_modality="skip")
    assert [item.name for item in complete] == [item.name for item in items[1:]]
    partial = list_items(wmveid, "train", ALL, missing_modality="absent")
    assert [[image is not None for image in item.images] for item in (partial[0], partial[3])] == [
        [True, False, True],
        [False, False, True],
    ]
    for file in (wmveid / "train").glob("*/vis/*"):
        file.unlink()
    noise(wmveid / "train" / "0483" / "vis" / "0483_v7_n0_s999_105.jpg")
    with pytest.raises(ValueError, match="no item has all of RGB, NI, TI"):
        list_items(wmveid, "train", ALL, missing_modality="skip")


def test_a_file_in_the_folder_of_another_identity_is_named(wmveid: Path) -> None:
    stray = wmveid / "train" / "0483" / "vis" / "0484_v1_n1_s999_000.jpg"
    shutil.copy(wmveid / "train" / "0484" / "vis" / "0484_v2_n0_s999_000.jpg", stray)
    with pytest.raises(
        ValueError, match=r"1 files lie in the folder of another .*: 0483/vis/0484_v1_n1_s999_000\.jpg;"
    ):
        list_items(wmveid, "train", ALL)


def test_names_that_break_the_rule_of_the_benchmark_are_named(wmveid: Path) -> None:
    noise(wmveid / "train" / "0483" / "vis" / "0483_1.jpg")
    with pytest.raises(ValueError, match=r"<identity>_v<view>_n<night>_.*; 1 are not: 0483_1 \(read as WMVEID863\)"):
        list_items(wmveid, "train", ALL)


def test_a_folder_in_no_layout_lists_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    with pytest.raises(FileNotFoundError) as caught:
        recognise(tmp_path)
    message = str(caught.value)
    assert "in no known layout: it holds pictures. It holds no image down to five folders deep. Looked for" in message
    for name in ("RGBNT100: [rgbir/]{bounding_box_train,", "768 pixels wide", "RGBN300", "512 pixels wide"):
        assert name in message
    for name in ("MSVR310: {bounding_box_train,query3,", "WMVEID863: {train,query,test}/<identity>/{vis", "train_171"):
        assert name in message
    with pytest.raises(FileNotFoundError, match="root must be the folder of a data set"):
        recognise(tmp_path / "nothing")
    noise(tmp_path / "query" / "0001_c0001_000.jpg", (128, 300))
    with pytest.raises(ValueError, match=r"must be three \(RGBNT100\) or two \(RGBN300\) panels .* 300 pixels wide"):
        recognise(tmp_path)


def test_a_folder_set_may_keep_query_and_gallery_apart(tmp_path: Path) -> None:
    rgbnt201(tmp_path, "query", 4, range(2), range(1, 3), noise)
    rgbnt201(tmp_path, "gallery", 8, range(2), range(1, 3), noise)
    assert recognise(tmp_path) == "folders"
    test = read_split(tmp_path, "test", ALL)
    assert [part.tolist() for part in query_gallery(test)] == [list(range(4)), list(range(4, 12))]
    assert {item.role for item in read_split(tmp_path, "query", ALL)} == {"query"}
    with pytest.raises(
        ValueError, match=r"query_cameras must be empty where the set has a query split; received \[1\]"
    ):
        query_gallery(test, (1,))


@pytest.mark.parametrize("layout", ["panels", "identities"])
def test_masks_and_captions_of_the_benchmarks(tmp_path: Path, layout: str) -> None:
    if layout == "panels":
        panels(tmp_path, "query", 2, range(2), range(1, 3), write_panels(3))
        panels(tmp_path, "bounding_box_test", 2, range(2), range(1, 3), write_panels(3))
        masks = [tmp_path / folder / "mask" for folder in ("query", "bounding_box_test")]
    else:
        msvr310(tmp_path, "query3", 2, range(2), range(2), range(2), noise)
        msvr310(tmp_path, "bounding_box_test", 2, range(2), range(2), range(2), noise)
        masks = [
            tmp_path / folder / f"{one:04d}" / "mask" for folder in ("query3", "bounding_box_test") for one in (0, 1)
        ]
    names = [item.name for item in list_items(tmp_path, "query", ALL)]
    for folder in masks:
        folder.mkdir()
        for name in names:
            if layout == "panels" or name.startswith(folder.parent.name):
                np.save(folder / f"{name}.npy", np.eye(24, 12, dtype=bool))
    (tmp_path / "text").mkdir()
    entries = [{"item": f"{name}.jpg", "description": f"about {name}"} for name in names]
    (tmp_path / "text" / "test.json").write_text(json.dumps(entries))
    items = read_split(tmp_path, "test", ALL, captions="required")
    assert [item.captions for item in items] == [(f"about {name}",) for name in names] * 2
    batch = collate([MultiModalDataset(items, (24, 12))[index] for index in range(4)])
    assert batch.masks is not None
    assert (batch.masks.numpy() == np.eye(24, 12, dtype=bool)).all()
    (tmp_path / "text" / "test.json").unlink()
    (tmp_path / "text" / "query.json").write_text(json.dumps(entries[:1]))
    (tmp_path / "text" / "gallery.json").write_text(json.dumps(entries))
    items = read_split(tmp_path, "test", ALL, captions="required")
    assert [item.captions for item in items] == [(f"about {name}",) for name in names] * 2


def test_captions_per_modality_stay_apart_in_the_order_asked_for(tmp_path: Path) -> None:
    rgbnt201(tmp_path, "test", 2, range(2), range(1, 2), noise)
    names = [item.name for item in list_items(tmp_path, "test", ALL)]
    (tmp_path / "text").mkdir()

    def describe(file: str, *texts: str) -> None:
        entries = [{"item": f"{name}.jpg", "description": text} for name, text in zip(names, texts, strict=False)]
        (tmp_path / "text" / file).write_text(json.dumps(entries))

    describe("test_RGB.json", "A red coat.", "A hat.")
    describe("test_NI.json", "A bright coat.", "A hat.")
    describe("test_TI.json", " ", "A warm head.")
    captions = [item.captions for item in list_items(tmp_path, "test", ("TI", "RGB", "NI"), captions="required")]
    assert captions == [("", "A red coat.", "A bright coat."), ("A warm head.", "A hat.", "A hat.")]
    assert [joined(texts) for texts in captions] == ["A red coat. A bright coat.", "A warm head. A hat."]
    describe("test.json", "A person in a coat.")
    captions = [item.captions for item in list_items(tmp_path, "test", ALL, captions="required")]
    assert captions == [("A person in a coat.",), ("A hat.", "A hat.", "A warm head.")]
    describe("test.json", "", "")
    for modality in ALL:
        describe(f"test_{modality}.json", "", "")
    with pytest.raises(ValueError, match="2 of 2 items have no caption"):
        list_items(tmp_path, "test", ALL, captions="required")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 1], [1, 0]], np.uint8), [[False, True], [True, False]]),
        (np.array([[0, 255], [127, 128]], np.uint8), [[False, True], [False, True]]),
        (np.array([[0.2, 0.5]], np.float32), [[False, True]]),
        (np.array([[True, False]]), [[True, False]]),
        (np.zeros((2, 2)), [[False, False]] * 2),
        (np.array([[1.0000001, 0.0, -1e-8]]), [[True, False, False]]),
    ],
)
def test_masks_as_arrays(tmp_path: Path, array: np.ndarray, expected: list[list[bool]]) -> None:
    np.save(tmp_path / "mask.npy", array)
    assert read_mask(tmp_path / "mask.npy").tolist() == expected
    assert find_defect(tmp_path / "mask.npy", is_mask=True) is None


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((1, 2, 2)), r"must be an array of numbers \(height, width\); it has shape \(1, 2, 2\), float64"),
        (np.array([["a"]]), "must be an array of numbers"),
        (np.array([[-1.0, 1.0]]), "within 0 ... 1 or 0 ... 255; it has values from -1 to 1"),
        (np.array([[np.nan, 1.0]]), "it has values from nan to nan"),
        (np.array([[0, 300]]), "it has values from 0 to 300"),
        (np.array([[0, 100]]), "is a mask whose largest value is 100; foreground must be 1 or 255"),
        (np.array([[0.0, 5.0]]), "is a mask whose largest value is 5; foreground must be 1 or 255"),
        (np.array([[0.6, 1.0]]), "is a mask whose values lie from 0.6 to 1, all foreground; background must be 0"),
        (np.array([[0.1, 0.3]]), "is a mask whose largest value is 0.3; foreground must be 1 or 255"),
        (np.array([[{}]], dtype=object), "cannot be decoded"),
    ],
)
def test_arrays_that_are_no_masks(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "mask.npy", array)
    defect = find_defect(tmp_path / "mask.npy", is_mask=True)
    assert defect is not None
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(defect)


def fill(root: Path, *files: str) -> Path:
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        noise(root / file)
    return root


def test_identities_as_folders_below_the_modality(tmp_path: Path) -> None:
    names = ("red truck/0001_cam2", "red truck/0002_cam3", "007/0001", "7/0001")
    fill(tmp_path, *(f"train/{modality}/{name}.png" for modality in ("RGB", "thermal") for name in names))
    fill(tmp_path, "train/mask/7/0001.png", "train/mask_RGB/007/0001.png")
    assert recognise(tmp_path) == "modality/identity"
    items = list_items(tmp_path, "train", ("thermal", "RGB"))
    found = [(item.name, item.identity, item.camera) for item in items]
    assert found == [
        ("007/0001", "007", None),
        ("7/0001", 7, None),
        ("red truck/0001_cam2", "red truck", 2),
        ("red truck/0002_cam3", "red truck", 3),
    ]
    split = tmp_path / "train"
    assert items[0].masks == (None, split / "mask_RGB" / "007" / "0001.png")
    assert items[1].masks == (split / "mask" / "7" / "0001.png",) * 2
    assert items[2].images == tuple(split / name / "red truck" / "0001_cam2.png" for name in ("thermal", "RGB"))
    assert protocol_for(items).drop == "camera"


def test_modalities_as_folders_below_the_identity(tmp_path: Path) -> None:
    fill(tmp_path, *(f"{split}/{one}/{name}/1.png" for split in ("query", "gallery") for one in "ab" for name in ALL))
    fill(tmp_path, "query/a/mask/1.png", "query/b/RGB/2.png")
    assert recognise(tmp_path) == "identity/modality"
    assert find_set(tmp_path).splits == ("test",)
    assert find_set(tmp_path).list_modalities("test") == list(ALL)
    items = list_items(tmp_path, "test", ALL, missing_modality="absent")
    assert [item.name for item in items] == ["a/1", "b/1", "b/2", "a/1", "b/1"]
    assert items[0].masks == (tmp_path / "query" / "a" / "mask" / "1.png",) * 3
    assert [image is None for image in items[2].images] == [False, True, True]
    (tmp_path / "text").mkdir()
    entries = [{"item": "a/1.png", "description": "one"}, {"item": "b/1.png", "description": "other"}]
    (tmp_path / "text" / "test.json").write_text(json.dumps(entries))
    items = list_items(tmp_path, "test", ("RGB",), captions="optional")
    assert [item.captions for item in items] == [("one",), ("other",), (), ("one",), ("other",)]


def test_modalities_of_ones_own_are_recognised_when_they_are_stated(tmp_path: Path) -> None:
    fill(tmp_path, "train/truck/polarised/1.png")
    with pytest.raises(FileNotFoundError, match=r"Nearest miss: train/truck/polarised/1\.png has an identity in its"):
        recognise(tmp_path)
    assert recognise(tmp_path, ["Polarised"]) == "identity/modality"
    assert len(list_items(tmp_path, "train", ("polarised",))) == 1


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("1.png", "lies in the root itself; it needs a folder of its split"),
        ("train/1.png", "lies in one folder, which would be its split"),
        ("train/a/b/c/1.png", "lies too deep"),
    ],
)
def test_what_is_not_recognised_names_the_nearest_miss_and_all_rules(tmp_path: Path, file: str, reason: str) -> None:
    fill(tmp_path, file)
    with pytest.raises(FileNotFoundError) as caught:
        recognise(tmp_path)
    assert f"Nearest miss: {file} {reason}" in str(caught.value)
    assert "train/red-truck/RGB/0001.jpg" in str(caught.value)
    assert "manifest.csv or manifest.parquet" in str(caught.value)


@pytest.mark.parametrize("stray", ["@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", ".x", "empty"])
def test_folders_of_systems_are_neither_splits_nor_modalities(tmp_path: Path, stray: str) -> None:
    rgbnt201(tmp_path / "set", "train", 2, range(2), range(1, 3), noise)
    for folder in (stray, f"train/{stray}", f"train/RGB/{stray}", f"train/{stray}/RGB", f"{stray}/train/RGB"):
        (tmp_path / "set" / folder).mkdir(parents=True, exist_ok=True)
    if stray != "empty":
        fill(tmp_path / "set", f"{stray}/train/RGB/._1.png", f"train/{stray}/x.png")
    found = find_set(tmp_path / "set")
    assert (found.layout, found.splits, found.list_modalities("train")) == ("folders", ("train",), list(ALL))
    assert len(list_items(tmp_path / "set", "train", ALL)) == 2


def test_an_archive_may_put_a_folder_around_the_set(tmp_path: Path) -> None:
    rgbnt201(tmp_path / "RGBNT201" / "RGBNT201", "train_171", 2, range(2), range(1, 3), noise)
    found = find_set(tmp_path / "RGBNT201")
    assert (found.layout, found.base) == ("RGBNT201", tmp_path / "RGBNT201" / "RGBNT201")
    assert found.missing == ("test",)
    rgbnt201(tmp_path / "other", "train", 2, range(2), range(1, 3), noise)
    with pytest.raises(FileNotFoundError, match=r"root must be one set; .* holds 2, among them .*: give one"):
        find_set(tmp_path)


def test_folders_that_a_benchmark_lacks_are_known(tmp_path: Path) -> None:
    msvr310(tmp_path, "bounding_box_train", 2, range(2), range(2), range(2), noise)
    msvr310(tmp_path, "query", 2, range(2), range(2), range(2), noise)
    assert find_set(tmp_path).missing == ("query3", "bounding_box_test")


@pytest.mark.parametrize("content", [b"", b"\xff\xd8\xff", b"no image"])
def test_a_damaged_first_file_does_not_hide_the_layout(tmp_path: Path, content: bytes) -> None:
    panels(tmp_path, "bounding_box_train", 4, range(548, 550), range(1, 3), write_panels(3))
    first = min((tmp_path / "bounding_box_train").iterdir())
    first.write_bytes(content)
    assert recognise(tmp_path) == "RGBNT100"
    with pytest.raises(ValueError, match=rf"1 of 4 files cannot be used.*\n.*{first.name}: cannot be decoded"):
        read_split(tmp_path, "train", ALL)
    with pytest.warns(UserWarning, match="1 items are left out"):
        assert len(read_split(tmp_path, "train", ALL, damaged="skip")) == 3
    for file in first.parent.iterdir():
        file.write_bytes(content)
    with pytest.raises(ValueError, match=r"0548_c0001_000.jpg must be three .*; it cannot be decoded, and no other"):
        recognise(tmp_path)


def test_a_set_that_only_resembles_a_benchmark_is_ones_own(tmp_path: Path) -> None:
    fill(tmp_path, *(f"train/0001/{name}/img_1.png" for name in ("vis", "ni", "th")))
    assert recognise(tmp_path) == "identity/modality"
    assert list_items(tmp_path, "train", ("vis", "th"))[0].identity == "0001"
