"""The layouts of the public benchmarks, with the true names and the true numbers of everything."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark_folders import EmptyFiles, msvr310, noise, panels, rgbnt201, wmveid863
from stmi_layers.training.dataset import MultiModalDataset, collate, query_gallery, read_split
from stmi_layers.training.layouts import recognise
from stmi_layers.training.protocol import protocol_for
from stmi_layers.training.record import Item, Panel, find_defect, read_image, read_mask
from stmi_layers.training.splits import list_items

ALL = ("RGB", "NI", "TI")


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> EmptyFiles:
    return EmptyFiles(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The images that are opened from now on."""
    files: list[Path] = []
    really = Image.open
    monkeypatch.setattr(Image, "open", lambda path: files.append(path) or really(path))
    return files


def figures(items: list[Item]) -> tuple[int, int, int]:
    """Triplets, identities and cameras."""
    return len(items), len({item.identity for item in items}), len({item.camera for item in items})


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
    items = read_split(tmp_path, "train", ("TI", "RGB"), missing_caption="none")
    assert (items[0].name, items[0].identity, items[0].camera) == ("0548_c0001_000", 548, 1)
    image = items[0].images[0]
    assert image is not None
    assert read_image(image).size == (256, 128)
    images, _ = MultiModalDataset(items, (12, 24), mask_mode="none").picture(0)
    assert np.abs(images[0].astype(int) - 150).max() <= 2
    assert np.abs(images[1].astype(int) - 50).max() <= 2
    wrong = tmp_path / "bounding_box_train" / "0549_c0002_000.jpg"
    noise(wrong, (128, 512))
    with pytest.raises(
        ValueError, match=r"1 of 4 files .*\n.*0549_c0002_000.* 512 pixels wide; 3 panels of 256 are 768"
    ):
        read_split(tmp_path, "train", ALL, missing_caption="none")


def test_rgbn300_has_two_panels(tmp_path: Path) -> None:
    for folder, identities in (("bounding_box_train", range(150)), ("query", range(150, 300))):
        panels(tmp_path / "rgbir", folder, 300, identities, range(1, 9), write_panels(2))
    assert recognise(tmp_path) == "RGBN300"
    items = list_items(tmp_path, "train", ("RGB", "NI"))
    assert figures(items) == (300, 150, 8)
    assert {image.count for item in items for image in item.images if isinstance(image, Panel)} == {2}
    with pytest.raises(FileNotFoundError, match=r"no modality folder 'TI'; it has RGB, NI \(--modalities\)"):
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
    assert (item.identity, item.scene, item.view, item.camera) == (155, 0, 0, 0)
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
    assert (first.name, first.identity, first.view, first.camera) == ("0483_v1_n1_s999_000", 483, 1, 1)
    assert (first.scene, first.columns) == (999, {"night": "1"})
    (wmveid / "train" / "0483" / "ni" / f"{first.name}.jpg").unlink()
    noise(wmveid / "train" / "0483" / "th" / "0483_v7_n0_s999_104.jpg")
    with pytest.raises(
        ValueError, match=rf"train: 3 images are missing .*RGB/0483_v7_n0_s999_104, NI/{first.name}, .*--missing-modal"
    ):
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
    assert "in no known layout: it holds pictures. Looked for" in message
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
    test = read_split(tmp_path, "test", ALL, missing_caption="none")
    assert [part.tolist() for part in query_gallery(test)] == [list(range(4)), list(range(4, 12))]
    assert {item.role for item in read_split(tmp_path, "query", ALL, missing_caption="none")} == {"query"}
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
    items = read_split(tmp_path, "test", ALL)
    assert [item.caption for item in items] == [f"about {name}" for name in names] * 2
    batch = collate([MultiModalDataset(items, (24, 12))[index] for index in range(4)])
    assert batch.masks is not None
    assert (batch.masks.numpy() == np.eye(24, 12, dtype=bool)).all()
    (tmp_path / "text" / "test.json").unlink()
    (tmp_path / "text" / "query.json").write_text(json.dumps(entries[:1]))
    (tmp_path / "text" / "gallery.json").write_text(json.dumps(entries))
    assert [item.caption for item in read_split(tmp_path, "test", ALL)] == [f"about {name}" for name in names] * 2


def test_captions_per_modality_are_joined_in_the_order_asked_for(tmp_path: Path) -> None:
    rgbnt201(tmp_path, "test", 2, range(2), range(1, 2), noise)
    names = [item.name for item in list_items(tmp_path, "test", ALL)]
    (tmp_path / "text").mkdir()

    def describe(file: str, *texts: str) -> None:
        entries = [{"item": f"{name}.jpg", "description": text} for name, text in zip(names, texts, strict=False)]
        (tmp_path / "text" / file).write_text(json.dumps(entries))

    describe("test_RGB.json", "A red coat.", "A hat.")
    describe("test_NI.json", "A bright coat.", "A hat.")
    describe("test_TI.json", " ", "A warm head.")
    captions = [item.caption for item in list_items(tmp_path, "test", ("TI", "RGB", "NI"), missing_caption="error")]
    assert captions == ["A red coat. A bright coat.", "A warm head. A hat."]
    describe("test.json", "A person in a coat.")
    captions = [item.caption for item in list_items(tmp_path, "test", ALL, missing_caption="error")]
    assert captions == ["A person in a coat.", "A hat. A warm head."]
    describe("test.json", "", "")
    for modality in ALL:
        describe(f"test_{modality}.json", "", "")
    with pytest.raises(ValueError, match="2 of 2 items have no caption"):
        list_items(tmp_path, "test", ALL, missing_caption="error")


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 1], [1, 0]], np.uint8), [[False, True], [True, False]]),
        (np.array([[0, 255], [127, 128]], np.uint8), [[False, True], [False, True]]),
        (np.array([[0.2, 0.5]], np.float32), [[False, True]]),
        (np.array([[True, False]]), [[True, False]]),
        (np.zeros((2, 2)), [[False, False]] * 2),
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
