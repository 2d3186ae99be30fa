"""Describe images with a trained model: `python -m examples.extract --checkpoint C --images DIR --out INDEX`.

Only the checkpoint is needed: the images need no identities, and masks only where the model was trained with masks.
An extraction that is stopped continues when the same command is run again. On several processes or machines:
`torchrun --nproc-per-node 2 -m examples.extract ...`.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import tyro

from examples import cli
from examples.images import Images, Policy, policy_of
from examples.listing import Listing, write_listing
from examples.masking import Maker, Segmentation, maker_of
from examples.restore import Computer, Loaded, load_model
from examples.sources import ALL, list_sources
from stmi_layers.training.distributed import by_first, join, lock, num_processes, rank
from stmi_layers.training.extraction import extract
from stmi_layers.training.settings import Range, from_dict, to_dict
from stmi_layers.training.shards import RECORD, Extraction, Shards, open_shards, shard_path

LISTING = "items.jsonl"


@dataclass(frozen=True)
class Arguments:
    """Images to describe, and the folder of their descriptors."""

    checkpoint: Path
    """The checkpoint.pt of a run."""
    images: tuple[str, ...]
    """Images: a set in any layout or its manifest; a folder with folders RGB, NI, TI ..., or with images; or files,
    such as RGB=a.jpg TI=b.png."""
    out: Path
    """Folder of the index: extraction.json and shards."""
    modality: str | None = None
    """Modality of images whose folder does not name a modality."""
    split: str = ALL
    """Split of a set; all splits by default."""
    masks: Policy | None = None
    """Masks: those from files ("given"), made on the fly by the classical method, SAM 2 or SAM 3, all foreground
    ("ones"), or none; by default as in the training of the model."""
    segmentation: tyro.conf.OmitArgPrefixes[Segmentation] = field(default_factory=Segmentation)
    descriptors: tuple[str, ...] = ()
    """Descriptors to keep: features of the model, several joined as in U+T, or all; by default the model's headline."""
    shard_size: int = 4096
    """Number of items per file; a stopped extraction loses at most the unfinished file of each process."""
    batch_size: int = 64
    """Number of items per forward pass."""
    damaged: Literal["error", "skip"] = "error"
    """Policy for images that cannot be read: stop, or leave their items out and list them."""
    amp: bool = True
    """Run the model in bfloat16 autocast on CUDA devices that support it."""
    machine: tyro.conf.OmitArgPrefixes[Computer] = field(default_factory=Computer)


def describe_images(arguments: Arguments, loaded: Loaded, device: torch.device, *, quiet: bool = False) -> Extraction:
    """List the images once, and describe the images that are not described yet."""
    listing = arguments.out / LISTING
    with ExitStack() as stack:
        lock(stack, arguments.out, ".extract.lock")  # extract() takes a second lock when the images are listed
        by_first(partial(_list, arguments, loaded, listing))
        items = Listing(listing)
        return extract(
            loaded.model,
            Images(items, loaded.run.data, arguments.masks, _maker(arguments, loaded, device)),
            arguments.out,
            device=device,
            descriptors=arguments.descriptors,
            shard_size=arguments.shard_size,
            batch_size=arguments.batch_size,
            workers=arguments.machine.workers,
            damaged=arguments.damaged,
            amp=arguments.amp,
            quiet=quiet or rank() > 0,
            listing=items.digest(),
            notes=notes_of(arguments, loaded),
        )


def _maker(arguments: Arguments, loaded: Loaded, device: torch.device) -> Maker | None:
    if arguments.masks not in ("sam2", "sam3"):
        return None
    if arguments.machine.workers:
        raise ValueError(f"workers must be 0 for masks {arguments.masks}: its model is in one process (--workers)")
    return maker_of(arguments.segmentation, arguments.masks, loaded.run.data, device=str(device))


@dataclass(frozen=True)
class Notes:
    """Record of an extraction that a search needs to treat its queries alike; paths are absolute.

    `seen` names the masks that the model received: those of the training if `masks` is None.
    """

    checkpoint: str
    method: str
    images: tuple[str, ...]
    split: str
    modality: str | None
    modalities: tuple[str, ...]
    masks: Policy | None
    seen: str
    segmentation: Segmentation
    ranges: Mapping[str, Range]


def notes_of(arguments: Arguments, loaded: Loaded) -> dict[str, Any]:
    """Return the notes of an extraction that a search needs to treat its queries alike."""
    data = loaded.run.data
    notes = Notes(
        checkpoint=str(arguments.checkpoint.absolute()),
        method=loaded.run.method,
        images=tuple(str(Path(text).absolute()) if Path(text).exists() else text for text in arguments.images),
        split=arguments.split,
        modality=arguments.modality,
        modalities=data.modalities,
        masks=arguments.masks,
        seen=policy_of(data, arguments.masks),
        segmentation=arguments.segmentation.anywhere(),
        ranges=data.ranges,
    )
    return to_dict(notes)


def read_notes(shards: Shards) -> Notes:
    """Read the notes of an index.

    Raises:
        ValueError: when the index was made by another program, or by another version of `examples.extract`.
    """
    try:
        return from_dict(Notes, shards.record.notes)
    except ValueError as error:
        reason = str(error).partition(". It was")[0]
        raise ValueError(
            f"{shards.folder} must be an index of examples.extract, of this version; {reason}. Extract again"
        ) from error


def _list(arguments: Arguments, loaded: Loaded, listing: Path) -> None:
    if (arguments.out / RECORD).exists():  # the listing of the extraction that is continued
        return
    captions = loaded.model.encode([()]) is not None
    items = list_sources(
        arguments.images,
        loaded.run.data.modalities,
        modality=arguments.modality,
        split=arguments.split,
        captions=captions,
    )
    needs_files = policy_of(loaded.run.data, arguments.masks) in ("given", "blank", "blank+given")
    write_listing(listing, items, loaded.run.data.modalities, masks=needs_files)


def main(arguments: Arguments) -> Extraction:
    """Extract the descriptors, and report what was written."""
    machine = arguments.machine.machine()
    device = join(machine.device)
    loaded = load_model(arguments.checkpoint, machine=machine)
    loaded.model.to(device)
    record = describe_images(arguments, loaded, device)
    if rank() == 0:
        _report(arguments.out, record)
    return record


def _report(out: Path, record: Extraction) -> None:
    names = ", ".join(f"{name} ({width})" for name, width in record.widths.items())
    there = sum(shard_path(out, number).exists() for number in range(record.num_shards))
    line = f"{record.items} items, descriptors {names}, {there} of {record.num_shards} shards in {out}"
    if there < record.num_shards and num_processes() > 1:
        print(f"{line}; other processes are still working")
        return
    print(line)
    left_out = open_shards(out).left_out()
    for name, reason in list(left_out.items())[:10]:
        print(f"left out: {name}: {reason}")
    if len(left_out) > 10:
        print(f"and {len(left_out) - 10} more were left out")


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.extract")
