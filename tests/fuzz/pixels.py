"""Variants of images and masks: formats, depths, transparency, orientation, pages, damage."""

from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from image_files import write_png, write_tiff

from .truth import SPLITS, Content, Variant, mask_of

# The mean difference of a value that a format may make, by suffix. AVIF is left out: its encoder may end the process.
SUFFIXES = {
    ".png": 0.0,
    ".tif": 0.0,
    ".bmp": 0.0,
    ".ppm": 0.0,
    ".dib": 0.0,
    ".gif": 40.0,
    ".jpg": 25.0,
    ".webp": 25.0,
    ".jp2": 0.0,
    ".jfif": 25.0,
    ".PNG": 0.0,
    ".Tiff": 0.0,
}
FORMAT = {".jfif": "JPEG"}
MODES = ("RGB", "L", "RGBA", "LA", "P", "1", "CMYK", "YCbCr", "PA")
TURNS = (None, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 255)


def an_image(variant: Variant, random: Random) -> None:
    """One image in another format, mode, orientation, or with several pages."""
    name = random.choice(sorted(variant.truth))
    suffix, mode = random.choice(sorted(SUFFIXES)), random.choice(MODES)
    turn, pages = random.choice(TURNS), random.choice((1, 1, 1, 3))
    path = _replace(variant.root / "train" / "TI" / f"{name}.png", suffix)
    variant.what, variant.names = f"{path.name}: {mode}, orientation {turn}, {pages} pages", (name,)
    variant.tolerance = SUFFIXES[suffix]
    image = _in_mode(variant.truth[name], mode)
    options: dict = {"format": FORMAT[suffix]} if suffix in FORMAT else {}
    if turn is not None:
        options["exif"] = _exif(turn)
    if pages > 1 and suffix.lower() in (".tif", ".tiff", ".gif", ".png", ".webp"):
        options |= {"save_all": True, "append_images": [Image.new(image.mode, image.size)] * (pages - 1)}
    try:
        (image if turn is None else image.transpose(_UNDO[turn]) if turn in _UNDO else image).save(path, **options)
    except (OSError, ValueError, KeyError):  # a mode that this format has not
        image.convert("RGB").save(path, **{key: value for key, value in options.items() if key == "format"})
        turn = None
    if turn in _UNDO and suffix.lower() in (".bmp", ".ppm", ".dib", ".gif", ".jp2"):  # which keep no such tag
        variant.truth[name].images["TI"] = np.array(
            Image.fromarray(_expected(variant.truth[name])).transpose(_UNDO[turn])
        )


_UNDO = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def _expected(content: Content) -> np.ndarray:
    pixels = content.images["TI"]
    assert pixels is not None
    return pixels


def _in_mode(content: Content, mode: str) -> Image.Image:
    """The picture in a mode, and in the truth what that mode keeps of it."""
    image = Image.fromarray(_expected(content))
    if mode in ("RGBA", "LA", "PA"):
        changed = image.convert("L").convert("LA") if mode != "RGBA" else image.convert("RGBA")
        changed.putalpha(Image.linear_gradient("L").resize(image.size))
        content.images["TI"] = np.array(image if mode == "RGBA" else image.convert("L").convert("RGB"))
        return changed
    changed = image.convert(mode)
    content.images["TI"] = np.array(changed.convert("RGB"))
    return changed


def _exif(turn: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = turn
    return exif


def _replace(path: Path, suffix: str) -> Path:
    path.unlink()
    return path.with_suffix(suffix)


def deep_images(variant: Variant, random: Random) -> None:
    """All thermal images with more than 8 bits, with and without a range."""
    kinds = (np.uint16, np.int16, np.int32, np.float32, np.uint8, np.float64, np.float16, np.int8, np.uint32)
    kind, channels = random.choice(kinds), random.choice((1, 1, 1, 2, 3, 4))
    low, high, ranged = 100.0, 1120.0, random.random() < 0.7
    use_png = kind is np.uint16 and random.random() < 0.4
    order, deflate, extra = random.choice("<>"), random.random() < 0.3, random.choice((None, 0, 1, 2))
    photometric = random.choice((None, None, 0))
    variant.what = f"{kind.__name__} x {channels}, {order}, {deflate=}, {extra=}, {photometric=}, {use_png=}, {ranged=}"
    variant.names = ("_cam", "TI")
    if ranged:
        variant.ranges["TI"] = (low, high)
    for split, identities in SPLITS.items():
        for name in (f"{identity:06d}_cam{camera}_0" for identity in identities for camera in (1, 2)):
            path = _replace(variant.root / split / "TI" / f"{name}.png", ".png" if use_png else ".tif")
            grey = np.random.default_rng(len(name) + int(name[5])).integers(0, 256, (16, 16, channels))
            is_byte = np.dtype(kind).itemsize == 1
            counts = grey.astype(np.uint8).view(kind) if is_byte else (grey * 4 + 100).astype(kind)
            if use_png:
                write_png(path, counts)
            else:
                sample = {"u": 1, "i": 2, "f": 3}[np.dtype(kind).kind]
                band = extra if channels in (2, 4) else None
                write_tiff(path, counts, order=order, deflate=deflate, kind=sample, extra=band, photometric=photometric)
            if split == "train":
                seen = 255 - grey if photometric == 0 and is_byte and not use_png else grey
                colours = seen[..., :3] if channels > 2 else seen[..., :1].repeat(3, axis=-1)
                variant.truth[name].images["TI"] = colours.astype(np.uint8)


def a_mask(variant: Variant, random: Random) -> None:
    """One mask in another form."""
    name = random.choice(sorted(variant.truth))
    form = random.choice(sorted(MASKS))
    path = variant.root / "train" / "mask" / f"{name}.png"
    path.unlink()
    variant.what, variant.names = f"mask as {form}", (name, "mask")
    variant.truth[name].mask = MASKS[form](path, mask_of(name))


def _image(path: Path, image: Image.Image, mask: np.ndarray, suffix: str = ".png", **options) -> np.ndarray:
    image.save(path.with_suffix(suffix), **options)
    return mask


def _grey(mask: np.ndarray) -> Image.Image:
    return Image.fromarray(mask.astype(np.uint8) * 255)


def _cutout(mask: np.ndarray, colour: int) -> Image.Image:
    return Image.fromarray(np.dstack([np.full((*mask.shape, 3), colour, np.uint8), mask.astype(np.uint8) * 255]))


def _nearly_opaque(mask: np.ndarray) -> Image.Image:
    alpha = np.full(mask.shape, 255, np.uint8)
    alpha[0] = 240
    return Image.fromarray(np.dstack([mask.astype(np.uint8) * 255] * 3 + [alpha]))


def _palette(mask: np.ndarray, colours: list[int]) -> Image.Image:
    image = Image.fromarray(mask.astype(np.uint8), "P")
    image.putpalette(colours)
    return image


def _array(path: Path, array: np.ndarray, mask: np.ndarray, **options) -> np.ndarray:
    np.save(path.with_suffix(".npy"), array, **options)
    return mask


def _labels(path: Path, mask: np.ndarray) -> np.ndarray:
    """Several objects by number: no mask, unless it is refused."""
    Image.fromarray(mask * np.uint8(3)).save(path)
    return mask


MASKS: dict[str, Callable[[Path, np.ndarray], np.ndarray]] = {
    "L": lambda path, mask: _image(path, _grey(mask), mask),
    "1": lambda path, mask: _image(path, _grey(mask).convert("1"), mask),
    "RGB": lambda path, mask: _image(path, _grey(mask).convert("RGB"), mask),
    "tif": lambda path, mask: _image(path, _grey(mask), mask, ".tif"),
    "bmp": lambda path, mask: _image(path, _grey(mask), mask, ".bmp"),
    "black cut-out": lambda path, mask: _image(path, _cutout(mask, 0), mask),
    "white cut-out": lambda path, mask: _image(path, _cutout(mask, 255), mask),
    "grey cut-out in TIFF": lambda path, mask: _image(path, _cutout(mask, 90), mask, ".tif"),
    "nearly opaque": lambda path, mask: _image(path, _nearly_opaque(mask), mask),
    "two greys": lambda path, mask: _image(path, Image.fromarray(np.where(mask, 255, 150).astype(np.uint8)), mask),
    "transparent": lambda path, mask: _image(path, _cutout(np.zeros_like(mask), 255), mask),
    "palette black and white": lambda path, mask: _image(path, _palette(mask, [0, 0, 0, 255, 255, 255]), mask),
    "palette in colour": lambda path, mask: _image(path, _palette(mask, [0, 0, 0, 128, 0, 0]), mask),
    "palette of a label": lambda path, mask: _image(path, _palette(mask, [0, 0, 0, 1, 1, 1]), mask),
    "0 and 1": lambda path, mask: _image(path, Image.fromarray(mask.astype(np.uint8)), mask),
    "labels": _labels,
    "turned": lambda path, mask: _image(path, _grey(mask).transpose(Image.Transpose.ROTATE_90), mask, exif=_exif(6)),
    "16 bits": lambda path, mask: _image(path, Image.fromarray(mask.astype(np.uint16) * 65535), mask),
    "bool array": lambda path, mask: _array(path, mask, mask),
    "0 and 1 array": lambda path, mask: _array(path, mask.astype(np.uint8), mask),
    "0 and 255 array": lambda path, mask: _array(path, mask.astype(np.uint8) * 255, mask),
    "float array": lambda path, mask: _array(path, mask.astype(">f4"), mask),
    "rounded array": lambda path, mask: _array(path, mask * np.float32(1.0000001), mask),
    "labels in floats": lambda path, mask: _array(path, mask * 5.0, mask),
    "signed array": lambda path, mask: _array(path, mask.astype(np.int64), mask),
    "column by column": lambda path, mask: _array(path, np.asfortranarray(mask), mask),
    "logits": lambda path, mask: _array(path, np.where(mask, 4.0, -4.0), mask),
    "NaN": lambda path, mask: _array(path, np.where(mask, 1.0, np.nan), mask),
    "with a channel": lambda path, mask: _array(path, mask[..., None], mask),
    "complex": lambda path, mask: _array(path, mask.astype(complex), mask),
    "objects": lambda path, mask: _array(path, mask.astype(object), mask),
    "text": lambda path, mask: _array(path, mask.astype("U1"), mask),
    "nothing": lambda path, mask: _array(path, np.zeros((0, 0)), mask),
    "300": lambda path, mask: _array(path, mask.astype(np.uint16) * 300, mask),
}


def damage(variant: Variant, random: Random) -> None:
    """An image, mask or array whose bytes are changed: no value is known, and nothing may end a command."""
    name, folder = random.choice(sorted(variant.truth)), random.choice(("RGB", "TI", "mask"))
    suffix = random.choice([*SUFFIXES, ".npy"] if folder == "mask" else sorted(SUFFIXES))
    path = _replace(variant.root / "train" / folder / f"{name}.png", suffix)
    if suffix == ".npy":
        np.save(path, mask_of(name))
    else:
        _grey(mask_of(name)).convert("L").save(path, FORMAT.get(suffix))
    data = bytearray(path.read_bytes())
    way = random.choice(("cut", "bits", "zeros", "longer", "empty", "other"))
    if way == "cut":
        del data[random.randrange(len(data)) :]
    elif way == "bits":
        for _ in range(random.choice((1, 3, 20))):
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    elif way == "zeros":
        start = random.randrange(len(data))
        data[start : start + 64] = bytes(len(data[start : start + 64]))
    elif way == "longer":
        data += random.randbytes(50)
    else:
        data = bytearray(b"" if way == "empty" else random.choice(OTHERS))
    path.write_bytes(data)
    variant.what, variant.names = f"{folder}/{path.name}: {way}", (name,)
    content = variant.truth[name]
    if folder == "mask":
        content.mask = None
    else:
        content.images[folder] = None


OTHERS = (
    b"%!PS-Adobe-3.0 EPSF-3.0\n",
    b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    b"version https://git-lfs",
    b"GIF89a",
)
