"""Checksums of the zip archives that torch writes; torch does not verify them when it reads an archive."""

import zipfile
from pathlib import Path


def find_damage(path: Path) -> str | None:
    """Return what is damaged in an archive, by the CRC-32 of every record; None for an intact archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            record = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, LookupError, NotImplementedError, RuntimeError) as error:
        return str(error)
    return None if record is None else f"the checksum of its record {record} is wrong"
