"""Reading of image and mask files: upright, at any bit depth, or refused with the reason.

| what a file may hold | how it is read |
|---|---|
| EXIF or TIFF orientation | applied: the image is read as viewers show it |
| transparency of an image | dropped; of a mask, it is the mask |
| several pages or frames | the first one |
| a TIFF's bands beyond the colours | dropped; refused if the file says that the colours are multiplied by a band |
| a colour profile | ignored: the values are those that are stored |
| more than 8 bits per channel | between the lowest and the highest count of a stated range, else refused |
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from stmi_layers.training.bands import refuse_multiplied, refuse_signed
from stmi_layers.training.depth import bits_of, read_counts
from stmi_layers.training.record import Panel, Source, path_of
from stmi_layers.training.settings import Range

# Formats as their content tells them, whatever the name says: no interpreter (EPS) and no link (MIC, WMF) among them.
FORMATS = ("JPEG", "PNG", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "GIF")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".avif", ".gif"),
    *(".pgm", ".ppm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
)
PANEL_WIDTH = 256
# Only after this all formats are known by name.
Image.init()
_KNOWN = tuple(name for name in FORMATS if name in Image.OPEN)  # AVIF and WebP are not in every build
_ORIENTATION = 0x0112
# Largest difference between the channels of a grey mask, from JPEG compression.
GREY_TOLERANCE = 24
# Floating numbers of a mask may lie this far outside of 0 ... 1, from rounding.
ROUNDING = 1e-3


class UnreadableError(ValueError):
    """Error for a file that cannot be read: one line with its path, also from a worker process of a loader."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


@contextmanager
def opened(path: Path) -> Iterator[ImageFile.ImageFile]:
    """Open an image without decoding its pixels.

    Raises:
        OSError: when the path leads to no file, or the file is in no known format.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe or a device would never end
        raise OSError("is no file")
    # A stream, not a path: given a path, Pillow memory-maps uncompressed TIFFs and misreads rotated ones.
    with path.open("rb") as file:
        try:
            image = Image.open(file, formats=_KNOWN)
        except UnidentifiedImageError:
            file.seek(0)
            raise OSError(_unknown(file.read(4))) from None
        with image:
            yield image  # pyright: ignore[reportReturnType]


def _unknown(magic: bytes) -> str:
    """Say why a file is not read, by its first bytes."""
    if magic[:2] in (b"II", b"MM"):
        return "is a TIFF cut short, or with samples of a kind not read; write it as grey or RGB, 8 or 16 bits"
    return "is in no known image format"


def read_image(source: Source, bounds: Range | None = None) -> Image.Image:
    """Read an image upright, in colour and with 8 bits per channel; of a panel, its part of the file.

    Takes and raises what [`read_upright`][stmi_layers.training.images.read_upright] does.
    """
    return read_upright(source, bounds).convert("RGB")


def read_upright(source: Source, bounds: Range | None = None) -> Image.Image:
    """Read an image upright with 8 bits per channel, "L" where the file is grey and "RGB" otherwise.

    Args:
        source: file, or panel of a file.
        bounds: lowest and highest count of a deep image, which become black and white; counts beyond are clipped to
            them. "image" takes the lowest and highest count of this image.

    Raises:
        OSError: when the file cannot be decoded.
        ValueError: when an image of more than 8 bits per channel has no bounds, or an 8-bit image has bounds; when
            its values are signed, or its colours are multiplied by another band.
    """
    path = path_of(source)
    with opened(path) as image:
        bits = bits_of(image, path)
        refuse_signed(image, bits)
        refuse_multiplied(image)
        if bits > 8 and bounds is None:
            raise ValueError(deep_message(bits))
        if bits <= 8 and bounds is not None:
            raise ValueError(f"has {bits} bits per channel, and the range of its modality is for deeper images")
        if bits <= 8:
            upright = upright_of(image)
    if bits > 8:
        upright = Image.fromarray(scale_counts(read_counts(path, opened), bounds or "image"))
    if upright.mode not in ("L", "RGB"):
        upright = upright.convert("RGB")
    if not isinstance(source, Panel):
        return upright
    width = upright.width // source.count
    return upright.crop((source.index * width, 0, (source.index + 1) * width, upright.height))


def deep_message(bits: int) -> str:
    """Say why a deep image is refused, and the cure."""
    return f"has {bits} bits per channel; state the counts that become black and white as the range of its modality"


def scale_counts(counts: NDArray[Any], bounds: Range) -> NDArray[np.uint8]:
    """Scale counts to bytes: the lower bound becomes 0, the upper bound 255, and counts beyond are clipped.

    >>> scale_counts(np.array([[6000, 7000, 8000, 9000, 9999]]), (7000, 9000)).tolist()
    [[0, 0, 128, 255, 255]]
    """
    low, high = (float(counts.min()), float(counts.max())) if bounds == "image" else bounds
    scaled = (counts.astype(np.float64) - low) / max(high - low, np.finfo(np.float64).tiny)
    return np.floor(scaled.clip(0, 1) * 255 + 0.5).astype(np.uint8)


def upright_of(image: Image.Image) -> Image.Image:
    """Decode an image and turn it upright by its orientation tag; an upright image is returned itself."""
    image.load()
    return image if image.getexif().get(_ORIENTATION, 1) == 1 else ImageOps.exif_transpose(image)


def read_mask(path: Path) -> NDArray[np.bool_]:
    """Read a mask at the size it is stored in, True = foreground.

    An image is foreground above 127; where parts of it are transparent, its opacity is the mask. An array (`.npy`) is
    either within 0 ... 1 and foreground from 0.5 on, or within 0 ... 255 and foreground above 127.

    Raises:
        OSError: when the file cannot be decoded.
        ValueError: when the file does not hold a mask.
    """
    levels = read_levels(path)
    if levels.dtype == np.bool_:
        return levels
    return levels >= 0.5 if levels.dtype.kind == "f" and levels.max() <= 1 else levels > 127


def read_levels(path: Path) -> NDArray[Any]:
    """Read the values of a mask: Bool, 0 ... 1 as floating numbers, or 0 ... 255."""
    if path.suffix.lower() == ".npy":
        return _array_levels(path)
    with opened(path) as image:
        bits = bits_of(image, path)
        refuse_signed(image, bits)
        if bits > 8:
            raise ValueError(f"is a mask of {bits} bits per channel; write it with 8 bits, 0 and 255")
        upright = upright_of(image)
    if upright.mode == "L" and "transparency" not in upright.info:
        return np.array(upright)
    if upright.has_transparency_data:
        alpha = np.array(upright.convert("RGBA").getchannel("A"))
        if alpha.max() <= 127:
            raise ValueError("is a mask that is wholly transparent; write it as grey, 0 and 255")
        if alpha.min() <= 127:
            return alpha
    coloured = upright.convert("RGB")
    red, green, blue = np.moveaxis(np.array(coloured), -1, 0)
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    if (most - least).max() > GREY_TOLERANCE:
        raise ValueError("is a mask in colour, which does not tell the foreground; write it as grey, 0 and 255")
    return np.array(coloured.convert("L"))


def _array_levels(path: Path) -> NDArray[Any]:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("is no file")
    # Memory-mapped, so that a header that announces terabytes is refused before memory is allocated.
    array = np.load(path, allow_pickle=False, mmap_mode="r")
    if array.ndim != 2 or array.dtype.kind not in "buif" or array.size == 0:
        raise ValueError(f"must be an array of numbers (height, width); it has shape {array.shape}, {array.dtype}")
    array = np.array(array)
    if array.dtype == np.bool_:
        return array
    if array.dtype.kind == "f":
        array = array.astype(np.float64)
        array = array.clip(0, 1) if array.min() >= -ROUNDING and array.max() <= 1 + ROUNDING else array
    least, most = float(array.min()), float(array.max())
    if not 0 <= least <= most <= 255:
        raise ValueError(f"must lie within 0 ... 1 or 0 ... 255; it has values from {least:g} to {most:g}")
    return array.astype(np.float64) if most <= 1 else array
