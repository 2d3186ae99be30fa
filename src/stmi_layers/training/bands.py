"""Samples of an image file besides its colours, as a TIFF or a colour profile declares them.

A multispectral camera writes near infrared as a fourth band of an RGB file, and labels it as it likes. As transparency
that colours are multiplied by, Pillow divides the colours by it.
"""

from PIL import ImageFile

_EXTRA, _FORMAT = 338, 339
_UNKNOWN, _ASSOCIATED = 0, 1
_SIGNED = 2


def refuse_signed(image: ImageFile.ImageFile, bits: int) -> None:
    """Refuse bytes with a sign, which Pillow reads as those without.

    Raises:
        ValueError: when the image is a TIFF of them.
    """
    if bits <= 8 and _SIGNED in _tags(image, _FORMAT):
        raise ValueError("has signed values of 8 bits per channel; write it with unsigned ones")


def refuse_multiplied(image: ImageFile.ImageFile) -> None:
    """Refuse colours that are multiplied by another band, or said to be.

    Raises:
        ValueError: when the image is a TIFF with associated alpha.
    """
    if _ASSOCIATED in _tags(image, _EXTRA):
        raise ValueError(
            "is a TIFF whose label says that its colours are multiplied by its last band; write it without that band, "
            "or with the band as unassociated alpha"
        )


def has_spare_bands(image: ImageFile.ImageFile) -> bool:
    """Tell whether the file has bands that are neither colours nor transparency, and are not read."""
    extra = _tags(image, _EXTRA)
    return _UNKNOWN in extra or len(extra) > 1


def has_profile(image: ImageFile.ImageFile) -> bool:
    """Tell whether the file declares colours other than sRGB; they are read as they are stored."""
    profile = image.info.get("icc_profile") or b""
    return bool(profile) and b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile


def _tags(image: ImageFile.ImageFile, tag: int) -> tuple[int, ...]:
    """The values of a tag of a TIFF, none in other formats."""
    values = image.tag_v2.get(tag, ()) if image.format == "TIFF" else ()  # pyright: ignore[reportAttributeAccessIssue]
    return values if isinstance(values, tuple) else (values,)
