"""Output files: complete or absent, one line for a failing disk, and folders locked by one run."""

import errno
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from processes import CONTEXT
from stmi_layers.training import files
from stmi_layers.training.files import locked, write_folder, write_text, write_whole


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.bin"
    with write_whole(path) as file:
        file.write(b"half")
        assert not path.exists()
        file.write(b" and half")
    assert path.read_bytes() == b"half and half"

    def fail() -> None:
        with write_whole(path) as file:
            file.write(b"other")
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert path.read_bytes() == b"half and half"
    assert os.listdir(path.parent) == ["x.bin"]


def test_what_libraries_write_goes_through(tmp_path: Path) -> None:
    with write_whole(tmp_path / "x.png") as file:
        Image.new("L", (3, 2)).save(file, "PNG")
    with write_whole(tmp_path / "x.pt") as file:
        torch.save({"a": torch.ones(3)}, file)
    with write_whole(tmp_path / "x.npy") as file:
        np.save(file, np.eye(2))
    write_text(tmp_path / "x.txt", "ü \udcff")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size == (3, 2)
    assert torch.load(tmp_path / "x.pt", weights_only=True)["a"].sum() == 3
    assert np.load(tmp_path / "x.npy").sum() == 2
    assert (tmp_path / "x.txt").read_text(encoding="utf-8") == "ü \\udcff"


class Full(io.FileIO):
    """A file on a disk with room for 100 bytes."""

    def write(self, data) -> int:
        if self.tell() + len(data) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(data)


@pytest.mark.parametrize("writer", ["plain", "torch", "pillow"])
def test_a_full_disk_is_one_line_and_leaves_nothing_behind(tmp_path: Path, monkeypatch, writer: str) -> None:
    class Raw(files._Raw, Full):
        pass

    monkeypatch.setattr(files, "_Raw", Raw)
    path = tmp_path / "checkpoint.pt"
    path.write_text("the last one")

    def write() -> None:
        with write_whole(path) as file:
            if writer == "torch":
                torch.save({"a": torch.ones(300_000)}, file)
            elif writer == "pillow":
                Image.effect_noise((200, 200), 90).save(file, "PNG")
            else:
                file.write(bytes(300_000))

    with pytest.raises(ValueError, match=r"checkpoint\.pt cannot be written: No space left on device") as caught:
        write()
    assert "\n" not in str(caught.value)
    assert (path.read_text(), os.listdir(tmp_path)) == ("the last one", ["checkpoint.pt"])


def test_a_path_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/x cannot be written: (Not a directory|File exists)"):
        write_text(tmp_path / "file" / "x", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder cannot be written: Is a directory"):
        write_text(tmp_path / "folder", "x")
    with pytest.raises(ValueError, match="file cannot be written: "), locked(tmp_path / "file"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


def test_errors_about_other_files_keep_their_words(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"), write_whole(tmp_path / "x"):
        (tmp_path / "nowhere").read_text()
    assert os.listdir(tmp_path) == []


def test_a_file_that_another_process_is_writing_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "x"
    with write_whole(path) as file:
        file.write(b"first")
        with pytest.raises(BlockingIOError, match="x is being written by another process"):
            write_text(path, "second")
    assert path.read_bytes() == b"first"
    (tmp_path / ".x.unfinished").write_bytes(b"what a killed process left")
    write_text(path, "second")
    assert (path.read_bytes(), os.listdir(tmp_path)) == (b"second", ["x"])


def test_a_folder_takes_the_place_of_another_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "index"
    for content in ("old", "new"):
        with write_folder(path, replace=True) as folder:
            write_text(folder / content, content)
            assert not (path / "new").exists()
    assert os.listdir(path) == ["new"]

    def fail() -> None:
        with write_folder(path, replace=True) as folder:
            (folder / "a").write_text("")
            write_text(folder / "a" / "b", "")

    with pytest.raises(ValueError, match=f"^{path}/a/b cannot be written: "):
        fail()
    assert (os.listdir(path), os.listdir(tmp_path)) == (["new"], ["index"])


def _hold(folder: Path, ready, stop) -> None:
    with locked(folder):
        ready.set()
        stop.wait(300)


def test_a_folder_in_use_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with locked(folder):
        with (
            pytest.raises(BlockingIOError, match=rf"run is in use by another run \(process {os.getpid()} on "),
            locked(folder),
        ):
            pass
        with locked(tmp_path / "other"):
            pass
    assert os.listdir(folder) == []
    with locked(folder):
        pass


@pytest.mark.slow
def test_a_killed_run_leaves_its_folder_free(tmp_path: Path) -> None:
    ready, stop = CONTEXT.Event(), CONTEXT.Event()
    other = CONTEXT.Process(target=_hold, args=(tmp_path, ready, stop))
    other.start()
    assert ready.wait(300)
    with pytest.raises(BlockingIOError, match=rf"process {other.pid} on"), locked(tmp_path):
        pass
    other.kill()
    other.join()
    with locked(tmp_path):
        pass
