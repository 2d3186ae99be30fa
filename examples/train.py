"""Train and evaluate a method on a set of images: `python -m examples.train METHOD --data DIR --out runs/NAME`.

A run that is killed continues with `--resume`; on a CPU it ends with the same weights as an uninterrupted run.
On several GPUs, or several machines: `torchrun --nproc-per-node 2 -m examples.train METHOD ...`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from examples import cli
from examples.run import Run, deviations
from examples.towers.tower import check_weights, fill_towers
from stmi_layers import ReIDMetrics
from stmi_layers.training import (
    Facts,
    MultiModalDataset,
    describe,
    facts_of,
    fit,
    load_split,
    protocol_for,
    read_checkpoint,
    scored_split,
    table,
)
from stmi_layers.training.distributed import rank, restarted
from stmi_layers.training.files import cannot_write, write_text


@dataclass(frozen=True)
class Options:
    """Place of the run."""

    out: Path
    """Folder of the run, for checkpoint, metrics, logs and figures."""
    resume: bool = False
    """Continue the run in `out`; without a run there, warn and start a new one."""


def train(run: Run, out: Path, *, resume: bool = False) -> dict[str, ReIDMetrics]:
    """Train, write a checkpoint after every epoch, evaluate, and write results and figures into `out`.

    Raises:
        FileExistsError: when `out` holds a run already and `resume` is False.
        ValueError: when settings, data and files do not fit each other.
    """
    checkpoint = out / "checkpoint.pt"
    if checkpoint.exists() and not resume and not restarted():
        raise FileExistsError(f"{out} holds a run already: continue it with --resume, or choose another --out")
    if not checkpoint.exists() and run.tower is not None:
        check_weights(run.tower)
    dataset, test = load_splits(run)
    protocol = protocol_for(test.items, run.data)
    facts = facts_of(dataset, run.data.modalities)
    # A checkpoint holds all weights: the pretrained file may be gone when a run continues.
    model, loaded = build_model(run, facts, pretrained=not checkpoint.exists())
    if loaded and not run.machine.quiet:
        print(loaded)
    with tensorboard(out) as log:
        metrics = fit(
            model,
            dataset,
            test,
            schedule=run.schedule,
            machine=run.machine,
            out=out,
            protocol=protocol,
            keep=run.keep(facts),
            resume=resume,
            log=log,
        )
    if loaded and rank() == 0:
        write_text(out / "weights.txt", loaded + "\n")
    # Images are read again, because the loop keeps neither images nor descriptors.
    device = next(model.parameters()).device
    descriptors = describe(model, test, device=device, workers=run.machine.workers, amp=run.machine.amp)
    if rank() == 0:
        report(run, out, test, protocol, descriptors[model.headline], model.headline, metrics)
    return metrics


def load_splits(run: Run) -> tuple[MultiModalDataset, MultiModalDataset]:
    """Load the training split of a run, and the split that scores it: the test split, or the validation identities.

    Images are not cached for evaluation, or with workers, because every worker would keep a copy.
    """
    cache = run.machine.cache and not run.machine.workers
    augment, seed = run.schedule.augmentation(), run.schedule.seed
    train_split = load_split(run.data, "train", augment=augment, seed=seed, cache=cache)
    return train_split, load_split(run.data, scored_split(run.data), seed=seed)


def build_model(run: Run, facts: Facts, *, pretrained: bool = True) -> tuple[Any, str]:
    """Build the model before its first epoch; return it with a report on pretrained weights. Deterministic."""
    torch.manual_seed(run.schedule.seed)
    model = run.build(facts)
    return model, fill_towers(run.tower, model) if pretrained and run.tower is not None else ""


@contextmanager
def tensorboard(out: Path) -> Iterator[Any]:
    """Yield a function that logs the entry of an epoch for TensorBoard."""
    writers: list[Any] = []

    def log(entry: dict[str, Any]) -> None:
        if not writers:
            from torch.utils.tensorboard import SummaryWriter

            writers.append(SummaryWriter(str(out / "tensorboard"), purge_step=entry["epoch"]))
        single = {name: entry[name] for name in ("loss", "learning_rate")}
        losses = {f"loss/{name}": value for name, value in entry.get("losses", {}).items()}
        scores = {f"mAP/{name}": value for name, value in entry.get("mAP", {}).items()}
        for name, value in {**single, **losses, **entry["watch"], **scores}.items():
            writers[0].add_scalar(name, value, entry["epoch"])

    try:
        yield log
    finally:
        try:
            for writer in writers:
                writer.close()
        except OSError as error:  # the disk is full
            raise cannot_write(out / "tensorboard", error) from error


def report(
    run: Run,
    out: Path,
    test: MultiModalDataset,
    protocol: Any,
    descriptor: torch.Tensor,
    name: str,
    metrics: dict[str, ReIDMetrics],
) -> None:
    """Draw the curves and ranked lists, and print the results."""
    from examples.figures import curves, ranked_lists, save

    paths = save(ranked_lists(test, descriptor, name, protocol), out / "retrieval.png")
    paths += save(curves(read_checkpoint(out / "checkpoint.pt").history), out / "curves.png")
    if not run.machine.quiet:
        if test.split == "validation":
            print(f"scored on {len(test.identities)} identities held out of the training split, not on the test split")
        lines = (table(metrics), f"protocol: {protocol.describe(test.items)}", out / "metrics.json", *paths)
        print(*lines, sep="\n")


def main(run: Run, options: Options) -> None:
    for line in deviations(run) if rank() == 0 else ():
        print(line)
    train(run, options.out, resume=options.resume)


if __name__ == "__main__":
    cli.run_method(main, Options, "python -m examples.train", __doc__)
