"""Splits read from folders with the true file names, and every possible fault of their files."""

import itertools
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from painted_sets import MODALITIES, NAMES, SIZE, blob, captions_of, read, save, write_captions, write_painted
from stmi_layers.training.messages import printable, shorten
from stmi_layers.training.splits import read_split


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_painted(tmp_path / "set")


def test_items_are_sorted_and_parsed_from_the_true_names(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listing = os.listdir
    monkeypatch.setattr(os, "listdir", lambda folder: sorted(listing(folder), reverse=True))
    items = read(write_captions(root, captions_of(NAMES)), captions="required")
    assert [item.name for item in items] == sorted(NAMES)
    assert [(item.identity, item.camera) for item in items] == list(itertools.product((3, 28, 171), (1, 2)))
    assert [item.captions for item in items] == [(f"about {name}",) for name in sorted(NAMES)]
    folder = root / "train_3"
    assert items[0].images == tuple(folder / modality / f"{NAMES[0]}.png" for modality in MODALITIES)
    assert items[0].masks == (folder / "mask" / f"{NAMES[0]}.png",) * 3


def test_a_split_goes_by_its_name_or_its_numbered_folder(root: Path) -> None:
    write_captions(root, captions_of(NAMES))
    assert read_split(root, "train", MODALITIES) == read_split(root, "train_3", MODALITIES)
    (root / "train_3").rename(root / "train")
    assert len(read_split(root, "train", ("TI",))) == len(NAMES)


def test_masks_per_modality_go_before_the_common_one(tmp_path: Path) -> None:
    root = write_painted(tmp_path, per_modality=True)
    save(root / "train_3" / "mask" / f"{NAMES[0]}.png", blob(0).astype(np.uint8) * 255)
    (root / "train_3" / "mask_NI" / f"{NAMES[0]}.png").unlink()
    item = read(root)[0]
    assert [mask.parent.name if mask else None for mask in item.masks] == ["mask_RGB", "mask", "mask_TI"]


def test_files_that_are_no_images_are_ignored(root: Path) -> None:
    (root / "train_3" / "RGB" / "Thumbs.db").write_text("")
    (root / "train_3" / "RGB" / "._000028_cam1_0_01.png").write_text("")
    assert len(read(root)) == len(NAMES)


def test_images_that_lie_too_deep_are_named(root: Path) -> None:
    for modality in MODALITIES:
        save(root / "train_3" / modality / "day 2" / "000009_cam1_0_00.png", blob(0).astype(np.uint8))
    with pytest.warns(UserWarning, match="images in 3 folders are passed over: train_3/NI/day 2, train_3/RGB/day 2"):
        assert len(read(root)) == len(NAMES)


def pipe(path: Path) -> None:
    os.mkfifo(path)


@pytest.mark.parametrize("file", ["items.csv", "text/train.json", "manifest.csv"])
@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Path.mkdir, "a folder"),
        (pipe, "no file"),
        (lambda path: path.symlink_to("/nowhere"), "a link that leads nowhere"),
    ],
    ids=["folder", "pipe", "broken link"],
)
def test_a_file_that_is_none_is_not_taken_for_none(root: Path, file: str, make: Callable, reason: str) -> None:
    (root / "text").mkdir(exist_ok=True)
    make(root / file)
    with pytest.raises(ValueError, match=f"{file} cannot be read: it is {reason}"):
        read(root, captions="optional")


def test_missing_captions(root: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"train\.json does not exist; write it by .* --split train`, or make captions optional"
    ):
        read(root, captions="required")
    assert {item.captions for item in read(root)} == {()}
    blank = [{"item": f"{NAMES[0]}.jpg", "description": " "}, {"item": f"{NAMES[1]}.jpg", "description": None}]
    write_captions(root, [*captions_of(NAMES[3:]), *blank])
    with pytest.raises(ValueError, match=rf"3 of 6 items have no caption: {NAMES[0]}, {NAMES[1]}, {NAMES[2]}; add"):
        read(root, captions="required")
    assert [item.captions for item in read(root)] == [(), (), (), *((f"about {name}",) for name in NAMES[3:])]
    assert {item.captions for item in read(root, captions="off")} == {()}


def test_damaged_files_are_all_named_or_left_out(root: Path) -> None:
    truncated = root / "train_3" / "NI" / f"{NAMES[0]}.png"
    truncated.write_bytes(truncated.read_bytes()[:60])
    (root / "train_3" / "mask" / f"{NAMES[3]}.png").write_text("no image")
    pattern = (
        rf"(?s)2 of 24 files cannot be used{{}}:\n  train_3/NI/{NAMES[0]}\.png: .*\n  train_3/mask/{NAMES[3]}\.png: "
    )
    with pytest.raises(ValueError, match=pattern.format("; repair them, or .* damaged='skip'.*")):
        read(root)
    with pytest.warns(UserWarning, match=pattern.format(", 2 items are left out")):
        items = read(root, damaged="skip")
    assert [item.name for item in items] == [NAMES[1], NAMES[2], NAMES[4], NAMES[5]]
    for file in (root / "train_3" / "TI").iterdir():
        file.write_text("")
    with pytest.raises(ValueError, match="8 of 24 files cannot be used, which leaves no item"):
        read(root, damaged="skip")


def test_values_that_would_be_misread_are_refused(root: Path) -> None:
    save(root / "train_3" / "TI" / f"{NAMES[0]}.png", np.full(SIZE, 3000, dtype=np.uint16))
    save(root / "train_3" / "mask" / f"{NAMES[1]}.png", blob(0).astype(np.uint8))
    with pytest.raises(
        ValueError,
        match=r"(?s)TI/.*has 16 bits per channel; state the counts .*\(mode I;16\).*mask/.*value is 1;",
    ):
        read(root)


def test_a_long_check_shows_its_progress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "train" / "RGB" / "000000_cam1_0_00.png", np.zeros((2, 2), np.uint8))
    read(tmp_path, ("RGB",), memory=tmp_path / "memory")
    assert "checking" not in capsys.readouterr().err
    for number in range(1, 1001):
        (tmp_path / "train" / "RGB" / f"{number:06d}_cam1_0_00.png").symlink_to("000000_cam1_0_00.png")
    assert len(read(tmp_path, ("RGB",), memory=tmp_path / "memory")) == 1001
    assert "checking" in capsys.readouterr().err


def _rename(root: Path, name: str) -> None:
    (root / "train_3" / "RGB" / f"{NAMES[0]}.png").rename(root / "train_3" / "RGB" / name)


FOLDER_ERRORS: dict[str, tuple[Callable[[Path], object], dict, str]] = {
    "no root": (
        lambda root: root.rename(root.parent / "elsewhere"),
        {},
        "root must be the folder of a data set, or ",
    ),
    "no split": (
        lambda root: (root / "train_3").rename(root / "training"),
        {},
        "has no split 'train'; it has training",
    ),
    "two splits": (lambda root: write_painted(root, "train_9"), {}, "ambiguous in .*: give one of train_3, train_9"),
    "no modality": (
        lambda root: None,
        {"modalities": ("RGB", "NIR")},
        "no modality folder 'NIR'; it has RGB, NI, TI",
    ),
    "no modalities": (lambda root: None, {"modalities": ()}, r"modalities must be a sequence .*; received \(\)"),
    "a string": (lambda root: None, {"modalities": "RGB"}, "modalities must be a sequence .*; received 'RGB'"),
    "a modality twice": (lambda root: None, {"modalities": ("NI", "NI")}, "different names; received"),
    "no images": (lambda root: (root / "train_3" / "XR").mkdir(), {"modalities": ("XR",)}, "XR holds no images"),
    "names": (
        lambda root: _rename(root, "28_c1.png"),
        {},
        "names must be <identity>_cam<camera>.*; 1 are not: 28_c1",
    ),
    "one stem twice": (
        lambda root: save(root / "train_3" / "RGB" / f"{NAMES[0]}.jpg", blob(0)),
        {},
        f"RGB holds several files of one stem, keep one of each: {NAMES[0]}",
    ),
    "no JSON": (lambda root: write_captions(root, "[{"), {}, "train.json is not JSON: Expecting"),
    "no list": (lambda root: write_captions(root, {}), {}, "train.json must be a list .*; received a dict"),
    "wrong keys": (
        lambda root: write_captions(root, [*captions_of(NAMES[:1]), {"item": "x", "caption": "y"}]),
        {},
        'must be a list of .*; entry 1 is {"item": "x", "caption": "y"}',
    ),
    "wrong type": (
        lambda root: write_captions(root, [{"item": "x", "description": 3}]),
        {},
        r'entry 0 is {"item": "x", "description": 3}',
    ),
    "too deep": (lambda root: write_captions(root, "[" * 100_000), {}, "train.json is not JSON: maximum recursion"),
    "too long a number": (lambda root: write_captions(root, "9" * 5000), {}, "train.json is not JSON: Exceeds the lim"),
    "unknown item": (
        lambda root: write_captions(root, captions_of([*NAMES, "000009_cam1_0_00"])),
        {},
        "1 captions are of items that do not exist: 000009_cam1_0_00",
    ),
    "two captions": (
        lambda root: write_captions(root, captions_of([*NAMES, NAMES[2]])),
        {},
        f"1 items have several captions: {NAMES[2]}",
    ),
    "missing_modality": (lambda root: None, {"missing_modality": "zero"}, "missing_modality must be one of 'error', "),
    "captions": (lambda root: None, {"captions": ""}, "captions must be one of 'off', 'required', 'optional'; rec"),
    "damaged": (lambda root: None, {"damaged": "ignore"}, "damaged must be one of .*; received 'ignore'"),
}


@pytest.mark.parametrize("case", FOLDER_ERRORS)
def test_folder_errors(root: Path, case: str) -> None:
    spoil, options, message = FOLDER_ERRORS[case]
    spoil(root)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read(root, **options)


def test_long_lists_of_names_are_shortened() -> None:
    assert shorten(list("abcdefgh")) == "a, b, c, d, e and 3 more"


def test_names_in_messages_are_printable() -> None:
    assert shorten(["a\nb", "c\x1b[2J", "\udcff", "ü"]) == r"a\nb, c\x1b[2J, \udcff, ü"
    assert printable(Path("x\ry")) == r"x\ry"


def test_a_byte_order_mark_is_no_part_of_captions(root: Path) -> None:
    write_captions(root, captions_of(NAMES))
    file = root / "text" / "train.json"
    file.write_text(file.read_text(), encoding="utf-8-sig")
    assert read(root, captions="required")[0].captions == (f"about {NAMES[0]}",)
    file.write_text("[é]", encoding="latin-1")
    with pytest.raises(ValueError, match=r"train\.json is not JSON: 'utf-8' codec"):
        read(root)


def test_numbers_beyond_64_bits_are_named(root: Path) -> None:
    _rename(root, f"000003_cam{9 * 10**20}.png")
    with pytest.raises(ValueError, match=r"train_3: 000003_cam9000.*: camera must be a whole number of at most 18 dig"):
        read(root)


def test_identity_minus_one_is_read(tmp_path: Path) -> None:
    save(tmp_path / "train" / "RGB" / "-1_cam2_x.png", blob(0).astype(np.uint8))
    assert [(item.identity, item.camera) for item in read(tmp_path, ("RGB",))] == [(-1, 2)]
