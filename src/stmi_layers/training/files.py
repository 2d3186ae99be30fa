"""Output that is whole or absent, and folders that one run at a time may use."""

import errno
import io
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


class _Raw(io.FileIO):
    """A file that remembers why writing failed, because libraries report it in words of their own."""

    failure: OSError | None = None

    def write(self, data, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            raise


@contextmanager
def write_whole(path: Path | str) -> Iterator[IO[bytes]]:
    """Open a file for binary writing that appears under its name when it is complete.

    It is written beside `path`, flushed to the disk and renamed. After any failure what was there before is left as it
    was, and the unfinished file is removed.

    Raises:
        ValueError: when the file cannot be written: the path and the reason in one line.
    """
    path = Path(path)
    # A leading dot, so that what a killed process leaves is no image to a reader; the next attempt overwrites it.
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = _Raw(unfinished, "w")
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        with io.BufferedWriter(raw) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except BaseException as error:
        failure = raw.failure or (error if isinstance(error, OSError) and error.errno in _FULL else None)
        unfinished.unlink(missing_ok=True)
        if failure is None and isinstance(error, OSError) and str(unfinished) in (error.filename, error.filename2):
            failure = error
        if failure is not None:
            raise cannot_write(path, failure) from error
        raise


@contextmanager
def write_folder(path: Path | str) -> Iterator[Path]:
    """Make a folder, to be filled in the block, that appears under its name when it is complete.

    Raises:
        ValueError: when it, or a file in it, cannot be written: the path and the reason in one line.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            unfinished = Path(scratch) / path.name
            unfinished.mkdir()
            yield unfinished
            if path.exists():
                path.rmdir()
            unfinished.rename(path)
    except OSError as error:
        if error.errno in _FULL or error.filename is None or str(path.parent) in str(error.filename):
            raise cannot_write(path, error) from error
        raise


def write_text(path: Path | str, text: str) -> None:
    """Write a text in UTF-8 by `write_whole`; names of files that are no UTF-8 are escaped."""
    with write_whole(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


@contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Keep a folder, made where it is missing, for this process until the end of the block.

    Raises:
        BlockingIOError: when another run uses the folder.
        ValueError: when the folder cannot be written to: its path and the reason in one line.
    """
    folder = Path(folder)
    path = folder / ".lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
    except BlockingIOError:
        raise BlockingIOError(
            f"{folder} is in use by another run ({_owner(path)}); choose another folder, or wait for its end"
        ) from None
    except OSError as error:
        raise cannot_write(folder, error) from error
    held = [lock]
    if hasattr(os, "register_at_fork"):
        # Else processes that load images would hold the lock of a run that was killed.
        os.register_at_fork(after_in_child=lambda: os.close(held.pop()) if held else None)
    try:
        yield
    finally:
        if fcntl is not None:
            path.unlink(missing_ok=True)
        os.close(held.pop())


def _acquire(path: Path) -> int:
    """Open and lock a file; one that its owner removed meanwhile is opened again."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and path.stat().st_ino == os.fstat(lock).st_ino:
                os.ftruncate(lock, 0)
                os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return lock
        except BlockingIOError:
            os.close(lock)
            raise
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                return lock
            os.close(lock)
            raise
        os.close(lock)


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:100] or "unknown"
    except OSError:
        return "unknown"


def cannot_write(path: Path, error: OSError) -> ValueError:
    """The error to raise for a file that cannot be written: its path and the reason."""
    return ValueError(f"{path} cannot be written: {error.strerror or error}")
