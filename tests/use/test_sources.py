"""Sources of images: no file is dropped, duplicated or mistaken for an image without a message."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples.listing import Listing, write_listing
from examples.search.pictures import pictures
from examples.sources import list_sources
from sets import save
from stmi_layers.training import Item

MODALITIES = ("RGB", "TI")


def listed(root: Path, **options: Any) -> list[str]:
    asked: dict[str, Any] = {"modality": None, "split": "all", "captions": False, **options}
    return [item.name for item in list_sources((str(root),), MODALITIES, **asked)]


def image(path: Path, value: int = 9) -> None:
    save(path, np.full((4, 4, 3), value, np.uint8))


def test_files_that_are_passed_over_are_counted(tmp_path: Path):
    image(tmp_path / "photos" / "first.png")
    image(tmp_path / "photos" / "day" / "a.png")
    for name in ("b.heic", "c.heic", "notes.txt", ".hidden.png"):
        (tmp_path / "photos" / "day" / name).write_text("")
    image(tmp_path / "photos" / "@eaDir" / "a.png" / "THUMB.png")
    with pytest.warns(UserWarning, match=r"photos: files are passed over .*: day: 2 \.heic"):
        assert listed(tmp_path / "photos", modality="RGB") == ["day/a", "first"]


def test_files_of_a_set_that_are_passed_over_are_counted(tmp_path: Path):
    for split in ("train", "test"):
        image(tmp_path / "set" / split / "RGB" / "000001_cam1.png")
    (tmp_path / "set" / "train" / "RGB" / "000001_cam2.heic").write_text("")
    with pytest.warns(UserWarning, match=r"files are passed over .*: train/RGB: 1 \.heic"):
        assert listed(tmp_path / "set") == ["000001_cam1", "000001_cam1"]


def test_two_files_of_one_name_are_refused(tmp_path: Path):
    for suffix in (".png", ".jpg"):
        image(tmp_path / f"a{suffix}")
    with pytest.raises(ValueError, match="holds several files of one stem, keep one of each: a"):
        listed(tmp_path, modality="RGB")


def test_links_to_folders_are_followed_once(tmp_path: Path):
    image(tmp_path / "elsewhere" / "b.png")
    image(tmp_path / "photos" / "a.png")
    (tmp_path / "photos" / "drive").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "photos")
    assert listed(tmp_path / "photos", modality="RGB") == ["a", "drive/b"]


def test_a_page_outlives_its_files(tmp_path: Path):
    for name in ("image.png", "mask.png"):
        (tmp_path / name).write_bytes(b"no image any more")
    item = Item("a", None, (tmp_path / "image.png", None), (tmp_path / "mask.png", tmp_path / "gone.png"))
    images, masks = pictures({}, MODALITIES, "given")(item)
    assert images[0] is not None
    assert (np.array(images[0]) == 128).all()
    assert (images[1], masks) == (None, [None, None])


def test_modalities_that_some_items_lack_are_counted(tmp_path: Path):
    for name, modality in (("a", "RGB"), ("a", "TI"), ("b", "RGB"), ("b_thermal", "TI")):
        image(tmp_path / "photos" / modality / f"{name}.png")
    options: dict[str, Any] = {"modality": None, "split": "all", "captions": False}
    items = list_sources((str(tmp_path / "photos"),), MODALITIES, **options)
    with pytest.warns(UserWarning, match="of 3 items some have no image in a modality: 1 no RGB, 1 no TI"):
        write_listing(tmp_path / "items.jsonl", iter(items), MODALITIES, masks=False)
    assert len(Listing(tmp_path / "items.jsonl")) == 3
