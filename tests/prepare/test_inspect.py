"""Command `inspect` on correct sets, and on a set with every fault at once."""

import csv
import errno
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmark_folders import msvr310, noise, panels, rgbnt201, wmveid863
from examples.prepare.contact_sheet import draw_contact_sheet
from examples.prepare.inspect import as_words, inspect_set
from examples.prepare.summary import align, count_rows, describe
from image_files import write_png, write_turned
from stmi_layers.training import checks, read_split


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int | str | None:
    """The command, and its exit status."""
    monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
    # A second import under the name __main__ is what `python -m` does.
    monkeypatch.delitem(sys.modules, "examples.prepare.inspect", raising=False)
    try:
        runpy.run_module("examples.prepare.inspect", run_name="__main__")
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
    assert "split 'train_171' was not read, and its files are not checked: see contradictory" in found.notes
    assert not any("there is nothing to train on" in note for note in found.notes)
    assert describe(found).endswith("\n2 problems")


def test_a_single_problem_is_counted_in_the_singular(sound: Path) -> None:
    (sound / "train_171" / "NI" / sorted(file.name for file in (sound / "train_171" / "NI").iterdir())[0]).unlink()
    assert describe(inspect_set(sound, quiet=True)).endswith("\n1 problem")


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
        "protocol: the query split queries the gallery, 1 against 2; same identity and view dropped; "
        "1 of 1 queries skipped, because the gallery has their identity with no other view"
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


def test_a_long_inspection_shows_its_progress(sound: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(checks, "SHOWN", 8)
    assert inspect_set(sound, workers=3).problems == {}
    assert "checking" in capsys.readouterr().err


def test_what_is_no_set_is_refused_in_a_line(tmp_path: Path, monkeypatch) -> None:
    message = run(monkeypatch, tmp_path / "nothing")
    assert str(message).startswith("error: root must be the folder of a data set")


def test_tables_are_aligned() -> None:
    assert align([{"a": 1, "long": "x"}, {"a": 234, "long": "yz"}]) == ["  a  long", "  1     x", "234    yz"]
    assert align([]) == []


def split_of(root: Path, split: str) -> Path:
    return root / {"train": "train_171"}.get(split, split)


def files(root: Path, split: str, modality: str) -> list[Path]:
    return sorted((split_of(root, split) / modality).iterdir())


def loop(path: Path) -> None:
    path.symlink_to(path.name)


@pytest.mark.parametrize(
    "fault",
    [
        loop,
        lambda path: path.symlink_to("/nowhere/x.jpg"),
        lambda path: path.mkdir(),
        os.mkfifo,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"GIF89a" + b"\xff" * 900),
        lambda path: path.symlink_to("/dev/zero"),
    ],
)
def test_nothing_in_a_set_stops_it(sound: Path, tmp_path: Path, fault, monkeypatch, capsys) -> None:
    """Beside every fault another one is named as well."""
    one, other = files(sound, "train", "RGB")[:2]
    other.write_bytes(b"no image")
    one.unlink()
    fault(one)
    mask = files(sound, "train", "mask")[0]
    mask.unlink()
    fault(mask)
    assert run(monkeypatch, sound, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert "unreadable (3):" in printed
    for path in (one, other, mask):
        assert f"{path.parent.parent.name}/{path.parent.name}/{path.name} " in printed


def test_folders_without_permission_are_named(sound: Path, monkeypatch) -> None:
    really = os.listdir
    locked = sound / "test" / "NI"

    def listdir(folder):
        if Path(folder) == locked:
            raise PermissionError(13, "Permission denied", str(folder))
        return really(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    found = inspect_set(sound, quiet=True)
    assert found.problems["contradictory"] == [f"{locked} cannot be read: Permission denied"]
    assert list(found.splits) == ["train_171"]


def test_names_that_are_no_text_are_shown_escaped(sound: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    for modality in ("RGB", "NI", "TI"):
        noise(split_of(sound, "train") / modality / "plain.jpg")
        path = os.fsencode(split_of(sound, "train") / modality)
        os.rename(path + b"/plain.jpg", path + b"/000002_cam1_\xff\x1b[2J.jpg")
    assert run(monkeypatch, sound, "--out", tmp_path / "out") == 1
    assert r"train_171: no mask of 000002_cam1_\udcff\x1b[2J for RGB, NI, TI" in capsys.readouterr().out


def test_files_that_are_passed_over_are_counted(sound: Path) -> None:
    folder = split_of(sound, "train") / "RGB"
    for name in ("a.heic", "b.heic", "c.raw", "d.npy", "e.mat", "f", "README", "notes.txt", "Thumbs.db", ".DS_Store"):
        (folder / name).write_text("")
    noise(folder / "more" / "000001_cam1.jpg")
    noise(sound / "test" / "000001_cam1.jpg")
    noise(sound / "pictures" / "logo.png")
    found = inspect_set(sound, quiet=True)
    assert found.problems == {
        "passed over": [
            "train_171/RGB: 1 without suffix, 2 .heic, 1 .mat, 1 .npy, 1 .raw, not read as images",
            "test: 1 images belong to no item",
            "train_171/RGB/more: 1 images belong to no item",
        ]
    }
    assert "pictures: 1 images belong to no item" in found.notes


def test_folders_that_cannot_be_read_are_named(sound: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of another user; the tests may run as the one who may do everything."""
    locked, really = split_of(sound, "train") / "TI", os.scandir

    def scan(place: Any) -> Any:
        if Path(place) == locked:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(place))
        return really(place)

    monkeypatch.setattr(os, "scandir", scan)
    found = inspect_set(sound, quiet=True)
    assert found.problems["unreadable"] == ["train_171/TI is a folder that cannot be read"]
    with pytest.raises(ValueError, match=r"train_171/TI cannot be read: Permission denied"):
        read_split(sound, "train", ("RGB", "TI"))


def test_results_inside_a_set_are_no_part_of_it(sound: Path) -> None:
    before = inspect_set(sound, quiet=True)
    for place in ("run", "runs/other"):
        noise(sound / place / "retrieval.png")
        noise(sound / place / "figures" / "curves.png")
        (sound / place / "checkpoint.pt").write_text("")
    assert inspect_set(sound, quiet=True) == before
    (sound / "test" / "checkpoint.pt").write_text("")  # of a run in a split, which stays one
    found = inspect_set(sound, quiet=True)
    assert found.splits == before.splits
    assert found.problems == {"passed over": ["test: 1 .pt, not read as images"]}


@pytest.mark.parametrize("suffix", [".jfif", ".pgm", ".jp2", ".JPEG", ".avif", ".gif"])
def test_images_of_all_suffixes_are_read(sound: Path, suffix: str) -> None:
    for path in sound.glob("*/*/*_cam2_*"):
        with Image.open(path) as image:
            image.convert("L").save(path.with_suffix(suffix), {".jfif": "JPEG"}.get(suffix))
        path.unlink()
    found = inspect_set(sound, quiet=True)
    assert "passed over" not in found.problems
    assert [len(items) for items in found.splits.values()] == [4, 6]


def test_policies_are_noted_with_their_count(sound: Path) -> None:
    one, other = files(sound, "train", "RGB")[:2]
    image = Image.effect_noise((16, 16), 90)
    image.putalpha(Image.linear_gradient("L").resize((16, 16)))
    image.save(one.with_suffix(".png"))
    one.unlink()
    write_turned(other, Image.effect_noise((16, 16), 80), 3)
    first, second, third, fourth = files(sound, "train", "mask")[:4]
    Image.new("L", (16, 16)).save(first)
    Image.new("L", (16, 16), 255).save(second)
    Image.fromarray(255 - np.eye(16, dtype=np.uint8) * 255).save(third)
    Image.linear_gradient("L").resize((16, 16)).save(fourth)
    notes = inspect_set(sound, quiet=True).notes
    for note in (
        "1 of 30 images are partly transparent, which is ignored",
        "1 of 30 images are turned upright as their orientation tag says",
        "1 of 10 masks have no foreground",
        "1 of 10 masks have no background",
        "1 of 10 masks are foreground along the border: check whether they are inverted",
        "1 of 10 masks have values between black and white, of which those above 127 are foreground",
    ):
        assert note in notes


@pytest.mark.parametrize("channels", [1, 3])
def test_deep_images_are_refused_until_their_range_is_stated(
    sound: Path, tmp_path: Path, channels: int, monkeypatch, capsys
) -> None:
    counts = np.linspace(7000, 9000, 256).astype(np.uint16).reshape(16, 16)
    for number, path in enumerate(sorted(sound.glob("*/TI/*"))):
        write_png(path.with_suffix(".png"), np.repeat((counts + number)[..., None], channels, axis=-1))
        path.unlink()
    assert run(monkeypatch, sound, "--out", tmp_path / "out") == 1
    printed = capsys.readouterr().out
    assert "unreadable (10):" in printed
    assert "has 16 bits per channel; state the counts that become black and white" in printed
    low, high = json.loads((tmp_path / "out" / "ranges.json").read_text())["TI"]
    assert (7000 < low < 7015, 8995 < high < 9010) == (True, True)
    stated = as_words({"TI": (low, high)})
    assert f"--ranges {stated}" in printed
    assert run(monkeypatch, sound, "--out", tmp_path / "out", "--ranges", *stated.split()) == 0
    assert "no problem found" in capsys.readouterr().out
    assert run(monkeypatch, sound, "--out", tmp_path / "out", "--ranges", "TI", "8000", "8100") == 0
    assert "10 of 30 images have more than 1 % of their counts beyond the range" in capsys.readouterr().out
    message = run(monkeypatch, sound, "--ranges", "TI", "9", "2")
    assert message == 'error: ranges must be a lowest and a highest count, or "image"; received (9.0, 2.0) for TI'


def test_what_a_benchmark_lacks_is_missing(tmp_path: Path) -> None:
    for folder in ("bounding_box_train", "query", "bounding_box_test"):
        msvr310(tmp_path, folder, 4, range(2), range(2), range(2), noise)
    found = inspect_set(tmp_path, quiet=True)
    assert found.problems["missing"] == ["MSVR310 lacks its folder query3"]
    assert list(found.splits) == ["train", "gallery"]


def test_one_wrong_file_of_columns_is_named_once(sound: Path) -> None:
    (sound / "items.csv").write_text("item;session\n")
    (sound / "text").mkdir()
    (sound / "text" / "train.json").write_text("[" * 100_000)
    problems = inspect_set(sound, quiet=True).problems["contradictory"]
    assert len(problems) == 2
    assert "items.csv must separate its columns by commas; it has semicolons" in problems[0] + problems[1]


def test_identities_of_ones_own_are_counted(tmp_path: Path) -> None:
    lines = ["split,identity,RGB,TI"]
    for number, (split, identity) in enumerate([("train", "a"), ("train", ""), ("test", "-1"), ("test", "b")]):
        lines.append(f"{split},{identity},{number}.png,t{number}.png")
        noise(tmp_path / f"{number}.png")
        noise(tmp_path / f"t{number}.png")
    (tmp_path / "manifest.csv").write_text("\n".join(lines))
    found = inspect_set(tmp_path, quiet=True)
    assert (found.layout, found.problems) == ("manifest", {})
    assert "1 items have the identity -1, junk in Market-1501: state it as junk to ignore them" in found.notes
    assert "1 items have no identity" in found.notes
    assert "rule: the manifest " in describe(found)
    assert [row["identities"] for row in count_rows(found, ["identity"])] == [1, 1, 1, 1]
