"""Records of checked files: valid until a file changes, shared by all processes, and optional."""

import gc
import json
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from benchmark_folders import noise
from image_files import write_png
from painted_sets import MODALITIES, NAMES, read, write_painted
from stmi_layers.training import checks
from stmi_layers.training.checks import check_files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_painted(tmp_path / "set")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Files that are decoded from now on."""
    found: list[str] = []
    really = checks.look_at
    monkeypatch.setattr(
        checks, "look_at", lambda source, **options: found.append(str(source)) or really(source, **options)
    )
    return found


def test_what_was_sound_is_not_decoded_again_until_it_changes(root: Path, seen: list[str]) -> None:
    items = read(root)
    assert len(seen) == 24
    seen.clear()
    assert read(root) == items
    assert seen == []
    file = root / "train_3" / "NI" / f"{NAMES[1]}.png"
    stamp = file.stat()
    file.write_bytes(file.read_bytes()[:60])
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # another size at the same time
    with pytest.raises(ValueError, match=rf"1 of 24 files cannot be used.*\n  train_3/NI/{NAMES[1]}.png"):
        read(root)
    assert seen == [str(file)]
    with pytest.raises(ValueError, match="1 of 24 files"):  # a defect is not remembered
        read(root)
    assert len(seen) == 2
    os.utime(root / "train_3" / "RGB" / f"{NAMES[0]}.png", ns=(1, 1))
    with pytest.raises(ValueError, match="1 of 24 files"):
        read(root)
    assert len(seen) == 4


def test_a_file_of_the_same_size_and_date_is_decoded_again(root: Path, seen: list[str]) -> None:
    """As a copy that keeps the date, or a clock that was set back, leaves it."""
    read(root)
    seen.clear()
    file = root / "train_3" / "NI" / f"{NAMES[1]}.png"
    stamp, data = file.stat(), bytearray(file.read_bytes())
    data[60] ^= 255
    while file.stat().st_ctime_ns == stamp.st_ctime_ns:  # the clock of a file system has ticks of milliseconds
        file.write_bytes(data)
        os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    with pytest.raises(ValueError, match="1 of 24 files cannot be used"):
        read(root)
    assert seen == [str(file)]


def test_a_set_that_moves_or_is_read_with_another_range_is_checked_anew(root: Path, seen: list[str]) -> None:
    for file in (root / "train_3" / "TI").iterdir():
        write_png(file, np.arange(24 * 12, dtype=np.uint16).reshape(24, 12))
    for number, ranges in enumerate(
        [{"TI": (0.0, 300.0)}, {"TI": (0.0, 300.0)}, {"TI": (0.0, 299.0)}, {"TI": "image"}]
    ):
        seen.clear()
        read(root, ranges=ranges)
        assert len(seen) == (24, 0, 6, 6)[number]
    with pytest.raises(ValueError, match="6 of 24 files cannot be used"):
        read(root)
    seen.clear()
    read(root.rename(root.parent / "moved"), ranges={"TI": "image"})
    assert len(seen) == 24


def test_counts_beyond_the_range_are_counted(root: Path) -> None:
    for file in (root / "train_3" / "TI").iterdir():
        write_png(file, np.arange(24 * 12, dtype=np.uint16).reshape(24, 12))
    with pytest.warns(
        UserWarning, match=r"6 images have more than 1 % of their counts beyond the range .*: 000003_cam1"
    ):
        read(root, ranges={"TI": (0.0, 200.0)})


@pytest.mark.parametrize("content", [b"", b"[1]", b'{"version": 0}', b"[" * 100_000, b"\xff"])
def test_a_damaged_memory_is_no_memory(root: Path, tmp_path: Path, seen: list[str], content: bytes) -> None:
    memory = tmp_path / "memory"
    read(root, memory=memory)
    next(memory.glob("*.json")).write_bytes(content)
    seen.clear()
    read(root, memory=memory)
    assert len(seen) == 24
    assert len(json.loads(next(memory.glob("*.json")).read_bytes())["files"]) == 24


def test_without_a_place_for_a_memory_everything_is_checked(root: Path, tmp_path: Path, seen: list[str]) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        read(root, memory=tmp_path / "file" / "x")
    assert len(seen) == 48


def test_several_share_one_check(root: Path, seen: list[str]) -> None:
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(len(read(root)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (found, len(seen)) == ([6] * 4, 24)


@pytest.mark.slow
def test_a_second_start_on_three_thousand_files_takes_a_tenth_of_the_first(tmp_path: Path) -> None:
    noise(tmp_path / "original.jpg", (256, 128))
    for modality in MODALITIES:
        (tmp_path / "set" / "train" / modality).mkdir(parents=True)
        for number in range(1000):
            name = f"{number // 4:06d}_cam{number % 4}_0_00.jpg"
            (tmp_path / "set" / "train" / modality / name).hardlink_to(tmp_path / "original.jpg")
    times = []
    gc.disable()  # a search through what other tests have left
    try:
        for _ in range(2):
            start = time.process_time()
            assert len(read(tmp_path / "set", captions="off")) == 1000
            times.append(time.process_time() - start)
    finally:
        gc.enable()
    assert times[1] < 0.1 * times[0], times


def test_the_sizes_and_notes_come_from_memory_too(root: Path, seen: list[str]) -> None:
    item = read(root)[0]
    images, masks = [image for image in item.images if image], [mask for mask in item.masks if mask]
    seen.clear()
    looks = check_files(images, masks, root=root)
    assert seen == []
    assert [look.size for look in looks.values()] == [(12, 24)] * 3 + [(24, 48)]
