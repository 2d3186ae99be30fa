"""Output that is whole or absent, and folders that one run at a time may use."""

import errno
import hashlib
import io
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

MEGABYTE = 2**20
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

    The file is written beside `path`, flushed to the disk and renamed. After a failure the previous file is unchanged,
    and the unfinished file is removed.

    Raises:
        BlockingIOError: when another process is writing the same file.
        ValueError: when the file cannot be written: the path and the reason in one line.
    """
    path = Path(path)
    # The leading dot keeps the file of a killed process from being read as an image; the next attempt overwrites it.
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = _Raw(_acquire(unfinished), "w")
    except BlockingIOError:
        raise BlockingIOError(f"{path} is being written by another process; wait for its end") from None
    except OSError as error:
        raise cannot_write(path, error) from error
    held = None if fcntl is None else os.dup(raw.fileno())  # keeps the lock after the file is closed
    try:
        os.ftruncate(raw.fileno(), 0)
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
    finally:
        if held is not None:
            os.close(held)


@contextmanager
def scratch_beside(path: Path | str) -> Iterator[Path]:
    """Make a folder for unfinished files beside a path, on the same disk, and remove it at the end of the block.

    Raises:
        ValueError: when a file in the folder cannot be written: the intended path and the reason in one line.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as scratch:
            try:
                yield Path(scratch)
            except ValueError as error:
                if scratch not in str(error):
                    raise
                raise ValueError(str(error).replace(scratch, str(path.parent))) from error
    except OSError as error:
        if error.errno in _FULL or error.filename is None or str(path.parent) in str(error.filename):
            raise cannot_write(path, error) from error
        raise


@contextmanager
def write_folder(path: Path | str, *, replace: bool = False) -> Iterator[Path]:
    """Make a folder, to be filled in the block, that appears under its name when it is complete.

    Args:
        path: the folder.
        replace: remove an existing folder of that name. If False, an existing folder must be empty.

    Raises:
        ValueError: when the folder, or a file in it, cannot be written: the path and the reason in one line.
    """
    path = Path(path)
    with scratch_beside(path) as scratch:
        unfinished = scratch / path.name
        unfinished.mkdir()
        yield unfinished
        if path.exists():
            shutil.rmtree(path) if replace else path.rmdir()
        unfinished.rename(path)


def write_text(path: Path | str, text: str) -> None:
    """Write a text in UTF-8 by `write_whole`; bytes of file names that are not valid UTF-8 are escaped."""
    with write_whole(path) as file:
        file.write(text.encode("utf-8", errors="backslashreplace"))


@contextmanager
def locked(folder: Path | str, name: str = ".lock") -> Iterator[None]:
    """Lock a folder, created if missing, for this process until the end of the block.

    Args:
        folder: the folder.
        name: name of the lock file in the folder, which is removed at the end.

    Raises:
        BlockingIOError: when another run uses the folder.
        ValueError: when the folder cannot be written to: its path and the reason in one line.
    """
    folder = Path(folder)
    path = folder / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquire(path)
        _sign(lock)
    except BlockingIOError:
        raise BlockingIOError(
            f"{folder} is in use by another run ({_owner(path)}); choose another folder, or wait for its end"
        ) from None
    except OSError as error:
        raise cannot_write(folder, error) from error
    held = [lock]
    if hasattr(os, "register_at_fork"):
        # Otherwise processes that load images would hold the lock of a killed run.
        os.register_at_fork(after_in_child=lambda: os.close(held.pop()) if held else None)
    try:
        yield
    finally:
        if fcntl is not None:
            path.unlink(missing_ok=True)
        os.close(held.pop())


def _acquire(path: Path) -> int:
    """Open and lock a file; open it again if its owner renamed or removed it meanwhile."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        try:
            if fcntl is not None:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _leads_to(path, lock):
                return lock
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):  # a file system without locks
                return lock
            os.close(lock)
            raise
        os.close(lock)


def _leads_to(path: Path, opened: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False


def _sign(lock: int) -> None:
    """Write the owner into a lock file; on a full disk the file stays empty."""
    with suppress(OSError):
        os.ftruncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _owner(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")[:100] or "unknown"
    except OSError:
        return "unknown"


def refuse_full(folder: Path, needed: float, what: str = "") -> None:
    """Refuse a folder on a disk with less room than a number of bytes, named as `what`.

    Raises:
        ValueError: naming the folder, what is needed, and what is free.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ValueError(
            f"{folder} must have room for {what}{needed / MEGABYTE:.1f} MB; its disk has {free / MEGABYTE:.1f} MB left"
        )


def digest_of(path: Path) -> str:
    """Return a digest of the content of a file, 16 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def cannot_write(path: Path, error: OSError) -> ValueError:
    """Return the error for a file that cannot be written: its path and the reason."""
    return ValueError(f"{path} cannot be written: {error.strerror or error}")
