"""Ranges of deep images on the command line: TI=7012:9411, or TI=image for the counts of each image alone."""

from collections.abc import Mapping, Sequence

from stmi_layers.training.settings import Range, check_ranges


def parse_ranges(texts: Sequence[str]) -> dict[str, Range]:
    """Ranges by modality.

    >>> parse_ranges(["TI=7012:9411", "NI=image"])
    {'TI': (7012.0, 9411.0), 'NI': 'image'}

    Raises:
        ValueError: when a text is no range.
    """
    ranges: dict[str, Range] = {}
    for text in texts:
        name, _, bounds = text.rpartition("=")
        try:
            low, high = ("image", "") if bounds == "image" else map(float, bounds.split(":"))
        except ValueError:
            name, low, high = "", 0.0, 0.0
        if not name or name in ranges:
            raise ValueError(
                f"ranges must be MODALITY=LOW:HIGH or MODALITY=image, once per modality; received {text!r} (--ranges)"
            )
        ranges[name] = "image" if low == "image" else (low, high)  # pyright: ignore[reportArgumentType]
    check_ranges(ranges)
    return ranges


def format_ranges(ranges: Mapping[str, Range]) -> str:
    """Ranges as they are given on the command line."""
    return " ".join(
        f"{name}={bounds if isinstance(bounds, str) else ':'.join(f'{count:g}' for count in bounds)}"
        for name, bounds in ranges.items()
    )
