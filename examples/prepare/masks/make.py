"""Settings of the masks, and the way from items to masks on disk; existing masks are kept."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import tyro
from PIL import Image
from tqdm import tqdm

from examples.prepare.masks.classical import Classical
from examples.prepare.masks.files import Note, mask_path, read_note, write_mask
from examples.prepare.masks.quality import Quality, measure_made
from examples.prepare.masks.regions import Mask, Probability, clean, stretch, vote
from examples.prepare.masks.sam2 import Prompt, Sam2
from examples.prepare.masks.sam3 import Nothing, Sam3, Several
from stmi_layers.training.device import choose_device
from stmi_layers.training.images import read_image
from stmi_layers.training.messages import shorten
from stmi_layers.training.record import Item
from stmi_layers.training.settings import Range, check_ranges
from stmi_layers.training.splits import read_split

VOTE = "vote"
State = Literal["made", "kept", "given"]
Segmenter = Callable[[Sequence[Image.Image]], list[Probability]]


@dataclass(frozen=True)
class Settings:
    """Images, method and destination of the masks."""

    data: tyro.conf.Positional[Path]
    """Data set in any layout that the trainer reads."""
    modalities: tuple[str, ...] = ("RGB", "NI", "TI")
    """Modalities from whose images a mask is made."""
    splits: tuple[str, ...] = ("train", "test")
    """Splits to make masks for, which the report covers."""
    method: Literal["sam2", "sam3", "classical"] = "sam2"
    """Method: SAM 2 or SAM 3, which need --weights, or a fallback by colour and place without weights."""
    weights: Path | None = None
    """Local folder with SAM 2 or SAM 3 and its processor; nothing is downloaded."""
    prompt: str = "composite"
    """Prompt of SAM 2 for the object: nearly the whole image as a "box", its centre as a "point", or both
    ("composite"). Prompt of SAM 3: the name of the thing, such as person, or several names, "car, truck, bus"."""
    several: Several = "middle"
    """Choice among several things that SAM 3 finds: the thing nearest the middle ("middle"), or the largest."""
    nothing: Nothing = "empty"
    """Policy if SAM 3 finds nothing: an empty mask, which the report lists; a mask of the whole image; or an error."""
    least: float = 0.5
    """Lowest score, 0 to 1, at which a thing of SAM 3 counts as found."""
    margin: float = 0.05
    """Margin of the box of SAM 2 at each end, as a share of the side, 0 to 0.5."""
    object_size: float = 0.5
    """Object size that the fallback expects: 0.5 for an object that fills the image, 0.2 for a small one."""
    source: str = VOTE
    """Source of the mask: "vote" of all modalities, or one modality; the others then only measure the agreement."""
    out: Path | None = None
    """Folder to write to instead of the data set; masks of the data set are then compared with the new masks."""
    folder: str = "mask"
    """Folder of the masks: "mask", common to all modalities, or "mask_<MODALITY>" for one modality."""
    overwrite: Literal["none", "own", "all"] = "none"
    """Existing masks to make again: none, those made by this command ("own"), or all; replaced masks are lost."""
    missing_modality: Literal["error", "absent"] = "error"
    """Policy for an item that lacks a modality: stop, or let its other images vote ("absent")."""
    damaged: Literal["error", "skip"] = "error"
    """Policy for files that cannot be decoded: stop, or leave their items out with a warning that names the files."""
    ranges: Mapping[str, Range] = field(default_factory=dict)
    """Counts that become black and white in images of more than 8 bits, by modality: TI 7012 9411, or TI image."""
    batch_size: int = 8
    """Number of items at a time, each with an image per modality."""
    device: str = "auto"
    """Device of the model; "auto" takes CUDA if torch finds it, otherwise the CPU."""
    sheet: int = 40
    """Number of doubtful masks in the figure, the most doubtful first."""


class Task(NamedTuple):
    """Task of making or keeping the mask of one item.

    Attributes:
        item: item of the mask.
        split: split of the item.
        path: path of the mask; of a given mask, the path of its file.
        state: "made" in this run; "kept", made by this command before; "given", from another source.
    """

    item: Item
    split: str
    path: Path
    state: State


def check(settings: Settings) -> None:
    """Refuse settings that contradict each other or are out of range, by ValueError."""
    sources, folders = (VOTE, *settings.modalities), ("mask", *(f"mask_{name}" for name in settings.modalities))
    for name, value, options in (("source", settings.source, sources), ("folder", settings.folder, folders)):
        if value not in options:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, options))}; received {value!r} (--{name})")
    check_ranges(settings.ranges)
    if settings.method != "classical" and settings.weights is None:
        of = {"sam2": "SAM 2", "sam3": "SAM 3"}[settings.method]
        raise ValueError(
            f"method {settings.method} needs --weights, a local folder with {of}; or pass --method classical"
        )
    if settings.method == "classical" and settings.weights is not None:
        raise ValueError("weights are for SAM 2 and would be ignored; leave out --weights or --method classical")
    if settings.method == "sam2" and settings.prompt not in get_args(Prompt):
        raise ValueError(
            f"prompt must be one of {', '.join(get_args(Prompt))} for SAM 2; received {settings.prompt!r}; names of "
            "things are for --method sam3"
        )
    if settings.method == "sam3" and settings.prompt in get_args(Prompt):
        raise ValueError("method sam3 needs --prompt, the name of the thing, such as person, or 'car, truck, bus'")
    if not settings.splits or len(set(settings.splits)) < len(settings.splits):
        raise ValueError(f"splits must be different names, at least one; received {settings.splits}")
    if settings.batch_size < 1 or settings.sheet < 0:
        raise ValueError(
            f"batch_size must be positive, sheet not negative; received {settings.batch_size} and {settings.sheet}"
        )


def build(settings: Settings) -> tuple[Segmenter, str]:
    """Return the function that makes masks, and its full name, which every mask and report stores."""
    device = choose_device(settings.device)
    if settings.weights is None:
        segmenter = Classical(object_size=settings.object_size, device=device)
    elif settings.method == "sam3":
        options: dict[str, Any] = {"several": settings.several, "nothing": settings.nothing, "least": settings.least}
        segmenter = Sam3(settings.weights, settings.prompt, **options, device=device)
    else:
        prompt: Prompt = settings.prompt  # pyright: ignore[reportAssignmentType]  checked above
        segmenter = Sam2(settings.weights, prompt=prompt, margin=settings.margin, device=device)
    names = ", ".join(settings.modalities)
    modality = f"vote over {names}" if settings.source == VOTE else f"mask of {settings.source}"
    return segmenter, f"{segmenter.name}; {modality}; largest region, holes filled"


def plan(settings: Settings, method: str) -> list[Task]:
    """List the items of all splits, each with the task for its mask.

    Raises:
        FileNotFoundError: when a split or a modality does not exist.
        ValueError: when files are damaged or missing; when an item lacks the modality of `source`; when existing masks
            were made by another method, or would hide the new masks.
    """
    tasks, strangers = [], []
    for split in settings.splits:
        items = read_split(
            settings.data,
            split,
            settings.modalities,
            missing_modality=settings.missing_modality,
            damaged=settings.damaged,
            ranges=settings.ranges,
        )
        _refuse_missing_source(items, settings)
        for item in items:
            task, note = _plan_item(item, split, settings)
            tasks.append(task)
            if task.state == "kept" and note is not None and note.method != method:
                strangers.append((item.name, note.method))
    if strangers:
        raise ValueError(
            f"{len(strangers)} masks were made in another way: {shorten([name for name, _ in strangers])}\n"
            f"  there: {strangers[0][1]}\n  asked: {method}\nPass --overwrite own to make them again, or another --out"
        )
    return tasks


def _plan_item(item: Item, split: str, settings: Settings) -> tuple[Task, Note | None]:
    path = mask_path(item, settings.folder, settings.data)
    if settings.out is not None:
        path = settings.out / path.relative_to(settings.data if settings.data.is_dir() else settings.data.parent)
    beside = [mask for mask in item.masks if mask is not None]
    hiding = [mask for mask in beside if mask.parent.parent == path.parent.parent and mask.parent.name != "mask"]
    if settings.folder == "mask" and hiding:
        raise ValueError(
            f"masks in {hiding[0].parent} are read instead of those in {path.parent}; pass --folder "
            f"{hiding[0].parent.name} for that modality, or --out to write elsewhere"
        )
    there = path if path.is_file() else next((mask for mask in beside if mask.parent == path.parent), None)
    if there is None:
        return Task(item, split, path, "made"), None
    note = read_note(there)
    if note is None and settings.overwrite != "all":
        return Task(item, split, there, "given"), None
    if there != path:
        raise ValueError(f"{there} and {path.name} would be two masks of one item; move {there.name} away first")
    return Task(item, split, path, "kept" if settings.overwrite == "none" else "made"), note


def _refuse_missing_source(items: list[Item], settings: Settings) -> None:
    if settings.source == VOTE:
        return
    index = settings.modalities.index(settings.source)
    without = [item.name for item in items if item.images[index] is None]
    if without:
        raise ValueError(
            f"source {settings.source!r} is missing in {len(without)} items: {shorten(without)}; pass --source {VOTE}"
        )


def run(tasks: Sequence[Task], segmenter: Segmenter, method: str, settings: Settings) -> None:
    """Make and write the masks to be made, a batch of items at a time."""
    todo = [task for task in tasks if task.state == "made"]
    with tqdm(total=len(todo), desc="masks", unit="item", disable=not todo) as progress:
        for start in range(0, len(todo), settings.batch_size):
            batch = todo[start : start + settings.batch_size]
            for task, (mask, quality) in zip(
                batch, make([task.item for task in batch], segmenter, settings), strict=True
            ):
                write_mask(task.path, mask, Note(method, quality))
                progress.update()


def make(items: Sequence[Item], segmenter: Segmenter, settings: Settings) -> Iterator[tuple[Mask, Quality]]:
    """Yield one mask per item, at the size of its source image, or for a vote of the item's first image."""
    bounds: list[Range | None] = [settings.ranges.get(name) for name in settings.modalities]
    images = [
        [None if source is None else read_image(source, one) for source, one in zip(item.images, bounds, strict=True)]
        for item in items
    ]
    maps = iter(_look(segmenter, [image for row in images for image in row if image is not None]))
    for row in images:
        seen = {name: next(maps) for name, image in zip(settings.modalities, row, strict=True) if image is not None}
        size = seen[next(iter(seen)) if settings.source == VOTE else settings.source][0].shape
        aligned = {name: stretch(probability, size) for name, (probability, _) in seen.items()}
        counts = [count for _, count in seen.values() if count is not None]
        together = np.stack(list(aligned.values()))
        used = together if settings.source == VOTE else aligned[settings.source][None]
        raw = vote(used)
        mask = clean(raw)
        yield mask, measure_made(mask, together, raw, used.mean(axis=0), counts or None)


def _look(segmenter: Segmenter, images: Sequence[Image.Image]) -> list[tuple[Probability, int | None]]:
    """Return maps, each with the number of found things, or None if the method does not count things."""
    if isinstance(segmenter, Sam3):
        return list(segmenter.look(images))
    return [(probability, None) for probability in segmenter(images)]
