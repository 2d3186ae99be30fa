"""Extra bands, signed values and colour profiles that an image file declares.

A multispectral camera writes near infrared as a fourth band of an RGB file, under any label. If the label is
premultiplied transparency (associated alpha), Pillow divides the colours by that band.
"""

from PIL import ImageFile

_EXTRA, _FORMAT = 338, 339
_UNKNOWN, _ASSOCIATED = 0, 1
_SIGNED = 2


def refuse_signed(image: ImageFile.ImageFile, bits: int) -> None:
    """Refuse signed 8-bit values, which Pillow reads as unsigned.

    Raises:
        ValueError: when the image is a TIFF with signed 8-bit values.
    """
    if bits <= 8 and _SIGNED in _tags(image, _FORMAT):
        raise ValueError("has signed values of 8 bits per channel; write it with unsigned values")


def refuse_multiplied(image: ImageFile.ImageFile) -> None:
    """Refuse colours that the file labels as multiplied by another band.

    Raises:
        ValueError: when the image is a TIFF with associated alpha.
    """
    if _ASSOCIATED in _tags(image, _EXTRA):
        raise ValueError(
            "is a TIFF whose colours are labelled as multiplied by its last band; write it without that band, "
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
    """Return the values of a tag of a TIFF; () in other formats."""
    values = image.tag_v2.get(tag, ()) if image.format == "TIFF" else ()  # pyright: ignore[reportAttributeAccessIssue]
    return values if isinstance(values, tuple) else (values,)
