"""Bit depth of image files, and the counts of images deeper than 8 bits.

Pillow's mode hides the depth: an image of three channels of 16 bits is "RGB", with the high byte of every count. The
file itself says how deep it is, and decoding it a second time for the low bytes gives all of the counts.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile, ImageOps

Open = Callable[[Path], AbstractContextManager[ImageFile.ImageFile]]
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0
# Pillow's names of byte orders, each with its opposite, which gives the low byte of a count instead of the high byte.
_NATIVE = "16L" if sys.byteorder == "little" else "16B"
_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B" if _NATIVE == "16L" else "16L"}


def bits_of(image: ImageFile.ImageFile, path: Path) -> int:
    """Return the bits per channel of an opened image file."""
    if image.mode.startswith("F"):
        return 32
    if image.format == "PNG":
        return _head(image, path, 25)[24]
    if image.format == "TIFF":
        return max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))  # pyright: ignore[reportAttributeAccessIssue]
    if image.format == "PPM":
        return _maximum(image).bit_length()
    if image.format == "JPEG2000":
        return _bits_of_jpeg2000(_head(image, path, 1 << 16))
    if image.format == "AVIF":
        return _bits_of_avif(_head(image, path, 1 << 16))
    return 16 if image.mode.startswith("I") else 8


def _head(image: ImageFile.ImageFile, path: Path, count: int) -> bytes:
    """Return the first bytes of the file, through its open stream if there is one."""
    if image.fp is None:
        with path.open("rb") as file:
            return file.read(count)
    place = image.fp.tell()
    image.fp.seek(0)
    head = image.fp.read(count)
    image.fp.seek(place)
    return head


def _maximum(image: ImageFile.ImageFile) -> int:
    """Return the highest value that a portable map declares."""
    arguments = image.tile[0].args
    if isinstance(arguments, tuple):
        return int(arguments[1])
    return 65535 if arguments == "I;16B" else 255


def _bits_of_jpeg2000(head: bytes) -> int:
    start = head.find(b"\xff\x4f\xff\x51")  # start of the codestream, then its sizes
    channels = int.from_bytes(head[start + 40 : start + 42], "big")
    depths = head[start + 42 : start + 42 + 3 * channels : 3]
    if start < 0 or not depths:
        raise ValueError("does not say how many bits it has per channel")
    return max((depth & 0x7F) + 1 for depth in depths)


def _bits_of_avif(head: bytes) -> int:
    start = head.find(b"av1C")
    if start < 0 or len(head) < start + 7:
        raise ValueError("does not say how many bits it has per channel")
    return 8 if not head[start + 6] & 0x40 else 12 if head[start + 6] & 0x20 else 10


def read_counts(path: Path, opened: Open) -> NDArray[Any]:
    """Read the counts of a deep image, (height width) or (height width 3), upright and without transparency.

    Raises:
        ValueError: when its format is not read at this depth, or some counts are not finite.
    """
    with opened(path) as image:
        if image.format == "PPM" and not image.mode.startswith("F"):
            return _portable_counts(image, path)
        if image.format not in ("PNG", "TIFF", "PPM"):
            raise ValueError(f"is {image.format} with more than 8 bits per channel; write it as PNG or TIFF")
        if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:  # pyright: ignore
            raise ValueError("is a deep TIFF whose counts fall from black to white; write it with counts that rise")
        if image.mode.startswith(("I", "F")):
            image.load()
            return _finite(np.array(ImageOps.exif_transpose(image)))
        names = {_layout(tile.args) for tile in image.tile}
        layout = names.pop() if len(names) == 1 else ""
    if layout == "LA;16B":
        both = _decode(path, opened, lambda _: "RGBA").astype(np.uint16)
        return both[..., 0] << 8 | both[..., 1]
    colours, _, order = layout.partition(";")
    if colours not in ("RGB", "RGBA", "RGBX") or order not in _SWAPPED:
        raise ValueError(f"has more than 8 bits per channel in the layout {layout or 'of planes'}; write it as RGB")
    high = _decode(path, opened, lambda name: name).astype(np.uint16)
    low = _decode(path, opened, lambda name: name.replace(order, _SWAPPED[order])).astype(np.uint16)
    return (high << 8 | low)[..., :3]


def _layout(arguments: Any) -> str:
    return arguments if isinstance(arguments, str) else arguments[0]


def _decode(path: Path, opened: Open, rename: Callable[[str], str]) -> NDArray[np.uint8]:
    """Decode with a byte layout other than the one that Pillow chose."""
    with opened(path) as image:
        arguments = [
            rename(tile.args) if isinstance(tile.args, str) else (rename(_layout(tile.args)), *(tile.args or ())[1:])
            for tile in image.tile
        ]
        image.tile = [tile._replace(args=new) for tile, new in zip(image.tile, arguments, strict=True)]
        image.load()
        return np.array(ImageOps.exif_transpose(image))


def _portable_counts(image: ImageFile.ImageFile, path: Path) -> NDArray[Any]:
    """Read the counts of a binary portable map, which Pillow would scale to 16 or 8 bits."""
    tile, channels = image.tile[0], 3 if image.mode == "RGB" else 1
    if tile.codec_name == "ppm_plain":
        raise ValueError("is a deep portable map in plain text; write it in binary, or as PNG or TIFF")
    count = image.width * image.height * channels
    with path.open("rb") as file:
        file.seek(tile.offset)
        data = file.read(2 * count)
    if len(data) < 2 * count:
        raise OSError("image file is truncated")
    counts = np.frombuffer(data, ">u2").reshape(image.height, image.width, channels)
    return counts.astype(np.uint16) if channels == 3 else counts[..., 0].astype(np.uint16)


def _finite(counts: NDArray[Any]) -> NDArray[Any]:
    if counts.dtype.kind == "f" and not np.isfinite(counts).all():
        raise ValueError(f"has {int((~np.isfinite(counts)).sum())} counts that are not finite")
    return counts
