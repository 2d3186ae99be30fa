"""Writers of image files that Pillow does not write: 16-bit PNG and TIFF, and metadata of cameras."""

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ADAM7 = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def write_png(path: Path, pixels: np.ndarray, *, interlaced: bool = False, chunks: tuple[bytes, ...] = ()) -> None:
    """A PNG with the depth of the array, all five filters in turn."""
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, channels = pixels.shape
    depth = pixels.dtype.itemsize * 8
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    parts = (pixels[top::down, left::right] for top, left, down, right in passes)
    data = b"".join(_filtered(part) for part in parts if part.size)
    head = struct.pack(">IIBBBBB", width, height, depth, COLOUR_TYPES[channels], 0, 0, int(interlaced))
    named = [
        (b"IHDR", head),
        *((chunk[:4], chunk[4:]) for chunk in chunks),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in named))


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _filtered(pixels: np.ndarray) -> bytes:
    step = pixels.shape[2] * pixels.dtype.itemsize
    above, rows = bytes(pixels.shape[1] * step), b""
    for number, row in enumerate(pixels):
        line, kind = row.astype(row.dtype.newbyteorder(">")).tobytes(), number % 5
        rows += bytes([kind]) + bytes(
            (value - _predicted(kind, line, above, place, step)) % 256 for place, value in enumerate(line)
        )
        above = line
    return rows


def _predicted(kind: int, line: bytes, above: bytes, place: int, step: int) -> int:
    left, corner = (line[place - step], above[place - step]) if place >= step else (0, 0)
    up = above[place]
    nearest = min((left, up, corner), key=lambda value: abs(left + up - corner - value))
    return (0, left, up, (left + up) // 2, nearest)[kind]


def write_tiff(
    path: Path,
    pixels: np.ndarray,
    *,
    order: str = "<",
    deflate: bool = False,
    kind: int = 1,
    photometric: int | None = None,
    extra: int | None = None,
) -> None:
    """A TIFF in one strip.

    Args:
        path: the file.
        pixels: (height width) or (height width channels).
        order: of the bytes, < or >.
        deflate: compress them.
        kind: SampleFormat: 1 unsigned, 2 signed, 3 floating.
        photometric: 0 white is zero, 1 black is zero, 2 RGB; by the number of channels by default.
        extra: what the last channel is: 0 unspecified, 1 associated alpha, 2 unassociated alpha.
    """
    pixels = pixels if pixels.ndim == 3 else pixels[..., None]
    height, width, channels = pixels.shape
    data = pixels.astype(pixels.dtype.newbyteorder(order)).tobytes()
    data = zlib.compress(data) if deflate else data
    depth = pixels.dtype.itemsize * 8
    interpretation = (2 if channels > 2 else 1) if photometric is None else photometric
    tags = {
        256: width,
        257: height,
        259: 8 if deflate else 1,
        262: interpretation,
        273: 0,
        277: channels,
        278: height,
        279: len(data),
    }
    if extra is not None:
        tags[338] = extra
    many = {258: depth, 339: kind}
    start = 8 + 2 + 12 * (len(tags) + len(many)) + 4
    packed_extra: bytes = b""
    entries: list[Any] = []
    for tag, value in sorted({**tags, **many}.items()):
        if tag in many and channels > 2:
            entries.append(struct.pack(f"{order}HHII", tag, 3, channels, start + len(packed_extra)))
            packed_extra += struct.pack(f"{order}{channels}H", *[value] * channels)
        elif tag in many:
            entries.append(struct.pack(f"{order}HHIHH", tag, 3, channels, value, value if channels == 2 else 0))
        else:
            entries.append((tag, value))
    place = start + len(packed_extra)
    packed = [
        one if isinstance(one, bytes) else struct.pack(f"{order}HHII", one[0], 4, 1, place if one[0] == 273 else one[1])
        for one in entries
    ]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        mark
        + struct.pack(f"{order}IH", 8, len(packed))
        + b"".join(packed)
        + struct.pack(f"{order}I", 0)
        + packed_extra
        + data
    )


def write_turned(path: Path, image: Image.Image, orientation: int) -> None:
    """Save an image turned, with the tag by which viewers turn it upright again."""
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if undo is None else image.transpose(undo)).save(path, exif=exif)
