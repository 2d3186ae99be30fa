"""`inspect` on sets that are sound, and on sets that are wrong in every way at once."""

import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmark_folders import msvr310, noise, panels, rgbnt201, wmveid863
from examples.prepare import file_checks
from examples.prepare.contact_sheet import draw_contact_sheet
from examples.prepare.inspect import align, count_rows, describe, inspect_set


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    """The command, and its exit status."""
    monkeypatch.setattr(sys, "argv", ["data", "inspect", *map(str, arguments)])
    # A second import under the name __main__ is what `python -m` does.
    monkeypatch.delitem(sys.modules, "stmi_layers.training.dataset", raising=False)
    try:
        runpy.run_module("stmi_layers.training.dataset", run_name="__main__")
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def sound(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    rgbnt201(root, "train_171", 6, range(3), range(1, 3), noise)
    rgbnt201(root, "test", 4, range(8, 10), range(1, 3), noise)
    for split in ("train_171", "test"):
        (root / split / "mask").mkdir()
        for file in (root / split / "RGB").iterdir():
            Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(root / split / "mask" / f"{file.stem}.png")
    return root


def test_a_sound_set_is_counted_and_pictured(sound: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    assert run(monkeypatch, sound, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert "layout: RGBNT201, modalities: RGB, NI, TI" in printed
    table = [line.split() for line in printed.splitlines()]
    assert ["split", "role", "items", "identities", "RGB", "NI", "TI", "masks", "captions"] in table
    assert ["train_171", "both", "6", "3", "6", "6", "6", "6", "0"] in table
    assert ["test", "both", "2", "2", "2", "2", "2", "2", "2", "0"] in table
    assert "train_171: 3 identities with 2 to 2 items, median 2" in printed
    assert "protocol: all query all, 4 against 4; same identity and camera dropped; 0 of 4 queries skipped" in printed
    assert "no problem found" in printed
    with (tmp_path / "out" / "counts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert ",".join(rows[0]) == "split,role,identity,camera,items,identities,RGB,NI,TI,masks,captions"
    assert list(rows[0].values()) == ["test", "both", "8", *"11111110"]
    assert len(rows) == 10
    with Image.open(tmp_path / "out" / "contact_sheet.png") as sheet:
        pixels = np.array(sheet)
    assert pixels.std() > 30
    assert (pixels == (255, 217, 47)).all(axis=-1).any()


def test_all_that_is_wrong_is_found(sound: Path, tmp_path: Path, capsys, monkeypatch) -> None:
    train, test = sound / "train_171", sound / "test"
    names = sorted(file.stem for file in (train / "RGB").iterdir())
    (train / "NI" / f"{names[0]}.jpg").unlink()
    (train / "mask" / f"{names[1]}.png").unlink()
    (train / "TI" / f"{names[2]}.jpg").write_bytes(b"no image")
    (test / "RGB" / "000008_cam1_0_00.jpg").write_bytes((train / "RGB" / f"{names[3]}.jpg").read_bytes())
    noise(train / "RGB" / f"{names[4]}.jpg", (16, 20))
    noise(train / "NI" / f"{names[5]}.jpg", (32, 32))
    Image.fromarray(np.full((16, 24), 255, np.uint8)).save(test / "mask" / "000009_cam2_0_00.png")
    (sound / "text").mkdir()
    entries = [{"item": f"{name}.jpg", "description": "someone"} for name in names[1:]]
    (sound / "text" / "train.json").write_text(json.dumps(entries))
    (sound / "text" / "test.json").write_text(json.dumps([{"item": "000077_cam1.jpg", "description": "nobody"}]))
    found = inspect_set(sound, quiet=True)
    assert {kind: len(lines) for kind, lines in found.problems.items()} == {
        "contradictory": 1,
        "missing": 3,
        "unreadable": 1,
        "duplicated": 1,
        "mismatched": 3,
    }
    text = describe(found)
    for line in (
        f"train_171: no NI image of {names[0]}",
        f"train_171: no mask of {names[1]} for RGB, NI, TI",
        f"train_171: no caption of {names[0]}",
        f"train_171/TI/{names[2]}.jpg cannot be decoded",
        f"test/RGB/000008_cam1_0_00.jpg = train_171/RGB/{names[3]}.jpg",
        f"train_171: the images of {names[4]} are 20 x 16 and 16 x 16 and 16 x 16",
        f"train_171: an image and the mask of {names[4]} are 20 x 16 and 16 x 16",
        "test: an image and the mask of 000009_cam2_0_00 are 16 x 16 and 24 x 16",
        "1 captions are of items that do not exist: 000077_cam1",
        "2 items have images of different sizes, which are scaled to one",
    ):
        assert line in text
    assert run(monkeypatch, sound, "--out", tmp_path / "out", "--limit", 1) == 1
    printed = capsys.readouterr().out
    assert "mismatched (3):" in printed
    assert "  and 2 more" in printed
    assert (tmp_path / "out" / "contact_sheet.png").exists()


def test_a_split_that_cannot_be_listed_and_one_without_a_modality_are_named(sound: Path) -> None:
    for file in (sound / "test" / "TI").iterdir():
        file.unlink()
    (sound / "test" / "TI").rmdir()
    noise(sound / "train_171" / "RGB" / "someone.jpg")
    found = inspect_set(sound, quiet=True)
    assert list(found.splits) == ["test"]
    assert found.problems["mismatched"] == ["test: no modality TI, which another split has"]
    assert "1 are not: someone (read as RGBNT201)" in found.problems["contradictory"][0]
    assert "missing" not in found.problems
    assert found.splits["test"][0].images[2] is None


def test_a_split_without_any_caption_is_noted_where_another_has_some(sound: Path) -> None:
    assert not any("captions" in note for note in inspect_set(sound, quiet=True).notes)
    (sound / "text").mkdir()
    entries = [{"item": file.name, "description": "someone"} for file in (sound / "test" / "RGB").iterdir()]
    (sound / "text" / "test.json").write_text(json.dumps(entries))
    found = inspect_set(sound, quiet=True)
    assert "train_171 has no captions, and another split has" in found.notes
    assert found.problems == {}


def test_queries_may_be_copies_of_gallery_entries_and_arrays_may_have_another_size(tmp_path: Path) -> None:
    msvr310(tmp_path, "bounding_box_train", 8, range(2), range(2), range(2), noise)
    for folder in ("query3", "bounding_box_test"):
        msvr310(tmp_path, folder, 8, range(2, 4), range(2), range(2), noise)
        for identity in ("0002", "0003"):
            masks = tmp_path / folder / identity / "mask"
            masks.mkdir()
            for file in (masks.parent / "vis").iterdir():
                np.save(masks / f"{file.stem}.npy", np.ones((8, 24), np.uint8))
    found = inspect_set(tmp_path, quiet=True)
    assert found.problems == {}
    rows = {(row["split"], row["role"]): row["items"] for row in count_rows(found, ["role"])}
    assert rows == {("train", "both"): 8, ("test", "query"): 8, ("test", "gallery"): 8}
    assert "test: 2 identities with 8 to 8 items, median 8; 2 scenes; 2 views" in describe(found)
    first = next(iter((tmp_path / "query3" / "0002" / "vis").iterdir()))
    first.write_bytes((first.parent.parent / "ni" / first.name).read_bytes())
    assert len(inspect_set(tmp_path, quiet=True).problems["duplicated"]) == 1


def test_shared_identities_and_queries_without_a_match_are_noted(tmp_path: Path) -> None:
    wmveid863(tmp_path, "train", 2, range(2), range(1, 2), noise)
    wmveid863(tmp_path, "query", 1, range(1, 2), range(1, 2), lambda path: noise(path, low=9))
    wmveid863(tmp_path, "test", 2, range(1, 3), range(1, 2), lambda path: noise(path, low=9))
    notes = inspect_set(tmp_path, quiet=True).notes
    assert notes[0] == "1 identities are in train and in test: 1"
    assert notes[1] == (
        "protocol: the query split queries the gallery, 1 against 2; same identity and camera dropped; "
        "1 of 1 queries skipped, for the gallery has their identity with no other camera"
    )


def test_panels_of_another_width_are_unreadable(tmp_path: Path) -> None:
    panels(tmp_path, "bounding_box_train", 3, range(2), range(1, 3), lambda path: noise(path, (128, 768)))
    noise(tmp_path / "bounding_box_train" / "0001_c0002_000.jpg", (128, 512))
    found = inspect_set(tmp_path, quiet=True)
    assert found.layout == "RGBNT100"
    assert found.problems["unreadable"] == [
        "bounding_box_train/0001_c0002_000.jpg is 512 pixels wide; 3 panels of 256 are 768"
    ]
    with Image.open(draw_contact_sheet(found.splits, found.modalities, tmp_path / "sheet.png")) as sheet:
        assert sheet.size[0] > 700


def test_files_are_looked_at_a_batch_at_a_time(sound: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(file_checks, "BATCH", 7)
    assert inspect_set(sound, workers=3).problems == {}
    assert "40/40" in capsys.readouterr().err


def test_what_is_no_set_is_refused_in_a_line(tmp_path: Path, monkeypatch) -> None:
    message = run(monkeypatch, tmp_path / "nothing")
    assert str(message).startswith("error: root must be the folder of a data set")


def test_tables_are_aligned() -> None:
    assert align([{"a": 1, "long": "x"}, {"a": 234, "long": "yz"}]) == ["  a  long", "  1     x", "234    yz"]
    assert align([]) == []
