"""Restoring of a trained model, and of its test split, from a checkpoint."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from examples.methods import load_method
from examples.run import Run, run_of
from stmi_layers.training import (
    Facts,
    Item,
    Machine,
    MultiModalDataset,
    Protocol,
    concatenate,
    describe,
    load_split,
    load_weights,
    protocol_for,
    read_checkpoint,
    scored_split,
)
from stmi_layers.training.device import choose_device
from stmi_layers.training.messages import printable
from stmi_layers.training.settings import from_dict


@dataclass(frozen=True)
class OtherData:
    """Data settings that replace those of the run; settings that are not given keep the value of the run."""

    data: Path | None = None
    """Folder of another set in any layout, or its manifest; the set of the run by default."""
    query_cameras: tuple[int, ...] | None = None
    """Cameras of the test split that query the other cameras."""
    match: str | None = None
    """Column in which a gallery entry has to equal the query to be a right answer."""
    drop: str | None = None
    """Column used with `match` to ignore gallery entries: an entry that equals the query in both columns is dropped."""
    junk: tuple[int | str, ...] | None = None
    """Identities of useless images, such as -1 in Market-1501: neither right nor wrong, and never queries."""
    missing_modality: Literal["error", "absent", "skip"] | None = None
    """Policy for a sample that lacks a modality: stop, mark the modality as absent, or skip the sample."""
    damaged: Literal["error", "skip"] | None = None
    """Policy for files that cannot be used: stop, or skip their samples."""
    validation: float | None = None
    """Share of the training identities to hold out and score instead of the test split; 0 scores the test split, which
    is the default for another set."""

    def changes(self) -> dict[str, Any]:
        """Return the given settings, by the names of the record `Data`."""
        given = {name: value for name, value in vars(self).items() if value is not None}
        if self.data is not None:
            given = {"validation": 0.0, **given}
        return {"root" if name == "data" else name: value for name, value in given.items()}


@dataclass(frozen=True)
class Computer:
    """Settings of the computer, and the package of your own method."""

    device: str = "auto"
    """Device: cpu, cuda, ...; "auto" takes CUDA if torch finds it, otherwise the CPU."""
    workers: int = 0
    """Number of processes that load images; 0 loads in the main process."""
    threads: int = 0
    """Number of CPU threads; 0 leaves the choice to torch."""
    method: str | None = None
    """Name of your own package, if the checkpoint holds its method. It is imported, so a file cannot choose it."""

    def __post_init__(self) -> None:
        if self.method is not None:
            load_method(self.method)

    def machine(self, *, quiet: bool = False) -> Machine:
        """Return the `Machine` record of the training package."""
        return Machine(device=self.device, workers=self.workers, threads=self.threads, quiet=quiet)


class Trained(NamedTuple):
    """Content of a checkpoint, and a test split.

    Attributes:
        run: settings of the run, with the requested changes.
        model: trained model, on its device and in evaluation mode.
        dataset: test split with encoded captions.
        protocol: rules for the matches of a query.
        machine: settings of the computer.
        history: an entry per epoch.
    """

    run: Run
    model: Any
    dataset: MultiModalDataset
    protocol: Protocol
    machine: Machine
    history: list[dict[str, Any]]

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return next(self.model.parameters()).device


class Loaded(NamedTuple):
    """Content of a checkpoint, without any data.

    Attributes:
        run: settings of the run, with the requested changes.
        model: trained model, on its device and in evaluation mode.
        facts: facts of the training set that the model was built from.
        history: an entry per epoch.
    """

    run: Run
    model: Any
    facts: Facts
    history: list[dict[str, Any]]


def load_model(checkpoint: Path, changes: Mapping[str, Any] | None = None, *, machine: Machine) -> Loaded:
    """Load the model of a checkpoint, without its data set.

    Args:
        checkpoint: the checkpoint.pt of a run.
        changes: settings of the run to replace, as in `restore`.
        machine: settings of the computer.

    Raises:
        FileNotFoundError: when there is no checkpoint.
        ValueError: when the file is not a checkpoint of this version.
    """
    if machine.threads:
        torch.set_num_threads(machine.threads)
    content, device = read_checkpoint(checkpoint), choose_device(machine.device)
    try:
        run = run_of(content.records)
        facts = from_dict(Facts, content.records["facts"])
        model = run.build(facts)
    except ImportError:
        raise
    except Exception as error:  # any error of a constructor whose settings are out of range
        raise ValueError(f"{checkpoint} does not fit this version: {printable(error)}") from error
    load_weights(model, content.model, "model", checkpoint)
    run = run.changed(changes or {})
    return Loaded(run, model.to(device).eval(), facts, content.history)


def restore(
    checkpoint: Path, changes: Mapping[str, Any] | None = None, *, machine: Machine, keep: Sequence[str] = ()
) -> Trained:
    """Read a checkpoint and the test split of its data.

    Args:
        checkpoint: the checkpoint.pt of a run.
        changes: settings of the run to replace, by their names in its records.
        machine: settings of the computer.
        keep: modalities that are present at test time; () keeps all.

    Raises:
        FileNotFoundError: when there is no checkpoint.
        ValueError: when the file is not a checkpoint of this version, or the data does not fit it.
    """
    run, model, _, history = load_model(checkpoint, changes, machine=machine)
    dataset = load_split(run.data, scored_split(run.data), seed=run.schedule.seed)
    protocol = protocol_for(dataset.items, run.data)
    if keep:
        dataset = reduced(dataset, run, keep)
    with torch.no_grad():
        dataset.encode_captions(model.encode)
    return Trained(run, model, dataset, protocol, machine, history)


def reduced(dataset: MultiModalDataset, run: Run, keep: Sequence[str]) -> MultiModalDataset:
    """Return the dataset with only the modalities to `keep`; other modalities are missing."""
    return MultiModalDataset(
        without(dataset.items, run.data.modalities, keep),
        run.data.image_size,
        seed=run.schedule.seed,
        masks=run.data.masks,
        missing_masks=run.data.missing_masks,
        ranges=[run.data.ranges.get(name) for name in run.data.modalities],
    )


def without(items: Sequence[Item], modalities: Sequence[str], keep: Sequence[str]) -> list[Item]:
    """Return the items with only the modalities to `keep`.

    Raises:
        ValueError: when `keep` names an unknown modality, or none.
    """
    if not keep or set(keep) - set(modalities):
        raise ValueError(f"keep must name some of the modalities {tuple(modalities)}; received {tuple(keep)}")
    kept = [modality in keep for modality in modalities]

    def only(parts: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(part if there else None for part, there in zip(parts, kept, strict=True))

    return [dataclasses.replace(item, images=only(item.images), masks=only(item.masks)) for item in items]


def describe_test(trained: Trained, headline: str | None = None) -> tuple[dict[str, Tensor], str]:
    """Compute the descriptors of the test split by name; return them and the name of the headline descriptor.

    Args:
        trained: model and test split.
        headline: headline descriptor: a feature, several joined as in "G+T", or "all"; the model's headline by default.

    Raises:
        ValueError: when `headline` is not among the descriptors.
    """
    chosen = headline or trained.model.headline
    machine = trained.machine
    descriptors = describe(
        trained.model,
        trained.dataset,
        device=trained.device,
        workers=machine.workers,
        amp=machine.amp,
        quiet=machine.quiet,
    )
    return joined_as(descriptors, chosen), chosen


def joined_as(descriptors: Mapping[str, Tensor], chosen: str) -> dict[str, Tensor]:
    """Return the descriptors, with the `chosen` descriptor added; names with "+" join several descriptors.

    Raises:
        ValueError: when a part of the name is not a descriptor.
    """
    if chosen in descriptors:
        return dict(descriptors)
    if set(chosen.split("+")) <= descriptors.keys():
        return {**descriptors, chosen: concatenate(descriptors, chosen.split("+"))}
    raise ValueError(
        f"descriptor must be one the model has, {list(descriptors)}, or several joined by +; received {chosen!r}"
    )
