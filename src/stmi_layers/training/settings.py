"""Settings of a data set, and the conversion of settings records to plain values and back.

A checkpoint keeps all settings records. A field that is missing in a checkpoint, or unknown, is an error that names the
field; it never gets a current default.
"""

import dataclasses
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from stmi_layers._checks import check_choice

Record = TypeVar("Record")
Masks = Literal["given", "ones", "empty", "eroded", "dilated", "shuffled", "blank", "blank+given", "none"]
Captions = Literal["off", "required", "optional"]
MissingModality = Literal["error", "absent", "skip"]
Damaged = Literal["error", "skip"]
# Lowest and highest count, which become black and white in images of more than 8 bits; "image": those of each image.
Range = tuple[float, float] | Literal["image"]


@dataclass(frozen=True)
class Data:
    """A set on disk, how it is read, and the protocol its test split is scored by."""

    root: Path
    """Folder of the set in any layout that `python -m examples.prepare.inspect` recognises, or its manifest."""
    modalities: tuple[str, ...] = ("RGB", "NI", "TI")
    """Names of the modalities to read, one image of each per sample."""
    image_size: tuple[int, int] = (64, 64)
    """Height and width in pixels that all images are resized to."""
    masks: Masks = "given"
    """Masks passed to the model: those from files ("given"), all foreground ("ones"), all background ("empty"), the
    given masks eroded or dilated by a 16th of the shorter side, the masks of other samples ("shuffled"), or none.
    "blank" passes no masks and paints the background of the images grey; "blank+given" paints it and passes the given
    masks."""
    missing_masks: Literal["error", "ones"] = "error"
    """Policy for an image without a mask where masks are needed: stop, or take the whole image as foreground."""
    captions: Captions = "off"
    """Captions: not read ("off"), required for every sample, or optional."""
    shuffled_captions: bool = False
    """Give every sample the captions of another sample, the same in every epoch: an ablation of caption content."""
    missing_modality: MissingModality = "error"
    """Policy for a sample that lacks an image in some modality: stop, mark the modality as absent, or leave the sample
    out with a warning."""
    damaged: Damaged = "error"
    """Policy for files that cannot be used: stop, or leave their samples out with a warning that names the files."""
    match: str = "identity"
    """Column in which a gallery entry has to equal the query to be a right answer."""
    drop: str | None = None
    """Column used with `match` to ignore gallery entries: an entry that equals the query in both columns is dropped. By
    default the scene on MSVR310, else the camera, or the view where a set numbers no cameras."""
    query_cameras: tuple[int, ...] = ()
    """Cameras of the test split that query the other cameras; if empty, every sample is both query and gallery."""
    junk: tuple[int | str, ...] = ()
    """Identities that mark useless images, such as -1 in Market-1501. Such images are left out of training and of the
    queries, and count as neither right nor wrong in the gallery."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Counts that become black and white, by modality, for images of more than 8 bits per channel: a lowest and a
    highest count, or "image" for the extremes of each image. An image of more than 8 bits is refused if its modality
    has no entry."""
    validation: float = 0.0
    """Share of the training identities to hold out, in order to choose settings. The run trains on the other identities
    and is scored on the held-out ones; the test split is not read. 0 trains on all and scores the test split."""
    validation_seed: int = 0
    """Seed that draws the validation identities; runs that are compared need the same one."""

    def __post_init__(self) -> None:
        check_modalities(self.modalities)
        if len(self.image_size) != 2 or min(self.image_size) < 1:
            raise ValueError(f"image_size must be a positive height and width; received {self.image_size}")
        for name, options in _LITERALS.items():
            check_choice(name, getattr(self, name), options)
        check_ranges(self.ranges)
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be at least 0 and below 1; received {self.validation}")
        if self.validation_seed < 0:
            raise ValueError(f"validation_seed must not be negative; received {self.validation_seed}")


_LITERALS = {
    "masks": get_args(Masks),
    "missing_masks": ("error", "ones"),
    "captions": get_args(Captions),
    "missing_modality": get_args(MissingModality),
    "damaged": get_args(Damaged),
}


def check_modalities(modalities: Collection[str]) -> None:
    """Refuse anything but a sequence of different names."""
    if isinstance(modalities, str) or not modalities or len(set(modalities)) < len(modalities):
        raise ValueError(f"modalities must be a sequence of different names; received {modalities!r}")


def check_ranges(ranges: Mapping[str, Range]) -> None:
    """Refuse ranges of counts that do not rise."""
    for name, bounds in ranges.items():
        if bounds != "image" and not (
            isinstance(bounds, tuple) and len(bounds) == 2 and float("-inf") < bounds[0] < bounds[1] < float("inf")
        ):
            raise ValueError(f'ranges must be a lowest and a highest count, or "image"; received {bounds!r} for {name}')


def to_dict(record: Any) -> dict[str, Any]:
    """Return the fields of a settings record as plain values, as JSON and a checkpoint hold them."""
    return {one.name: _plain(getattr(record, one.name)) for one in dataclasses.fields(record)}


def from_dict(kind: type[Record], values: Mapping[str, Any]) -> Record:
    """Restore the record that `to_dict` turned into `values`: lists become tuples, and texts become paths.

    `kind` is a dataclass or a NamedTuple.

    Raises:
        ValueError: when a field is absent, unknown or of a wrong type; the message names record and field.
    """
    names = getattr(kind, "_fields", None) or [one.name for one in dataclasses.fields(kind)]  # pyright: ignore
    problems = [f"lacks {name}" for name in names if name not in values]
    problems += [f"has the unknown {name}" for name in values if name not in names]
    if problems:
        raise ValueError(
            f"{kind.__name__} must have exactly its fields; received one that {', '.join(problems)}. It was written "
            "by another version: use that version, or train again"
        )
    hints = get_type_hints(kind)
    return kind(**{name: _restore(values[name], hints[name], f"{kind.__name__}.{name}") for name in names})


def differences(old: Any, new: Any, *, ignore: Collection[str] = ()) -> list[str]:
    """List the fields in which two records differ, a line each; paths differ when they lead to different places."""
    names = [one.name for one in dataclasses.fields(new) if one.name not in ignore]
    pairs = {name: (getattr(old, name), getattr(new, name)) for name in names}
    return [f"{name}: {a} -> {b}" for name, (a, b) in pairs.items() if _place(a) != _place(b)]


def _place(value: object) -> object:
    return value.resolve() if isinstance(value, Path) else value


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, tuple | list):
        return [_plain(part) for part in value]
    if isinstance(value, Mapping):
        return {name: _plain(part) for name, part in value.items()}
    return to_dict(value) if dataclasses.is_dataclass(value) and not isinstance(value, type) else value


def _restore(value: Any, hint: Any, where: str) -> Any:
    """Restore a plain value by its type hint."""
    if hint is Any:
        return value
    origin, options = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _first_that_fits(value, options, where)
    if origin is Literal and value in options:
        return value
    if origin is tuple and isinstance(value, tuple | list):
        kinds = [options[0]] * len(value) if options[1:] == (...,) else list(options)
        if len(kinds) == len(value):
            return tuple(_restore(part, kind, where) for part, kind in zip(value, kinds, strict=True))
    if origin in (dict, Mapping) and isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _restore(part, options[1], f"{where}[{name!r}]") for name, part in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return from_dict(hint, value)
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if origin is None and (value is None if hint in (None, type(None)) else type(value) is hint):
        return value
    raise ValueError(f"{where} must be {_words(hint)}; received {value!r}")


def _first_that_fits(value: Any, hints: Collection[Any], where: str) -> Any:
    for hint in hints:
        try:
            return _restore(value, hint, where)
        except ValueError:
            continue
    raise ValueError(f"{where} must be {' or '.join(map(_words, hints))}; received {value!r}")


def _words(hint: Any) -> str:
    return str(hint) if get_origin(hint) else getattr(hint, "__name__", str(hint))
