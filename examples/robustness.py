"""Scores of a trained model under conditions of deployment: with other masks, or without some modalities.

python -m examples.robustness --checkpoint runs/NAME/checkpoint.pt --masks eroded --keep RGB NI
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
import tyro

from examples import cli
from examples.groups import numbers_of, score_groups
from examples.preset import Result, Row
from examples.restore import Computer, describe_test, restore
from stmi_layers.training import Machine, score
from stmi_layers.training.files import digest_of, write_text

Masks = Literal["", "given", "ones", "empty", "eroded", "dilated", "shuffled"]


@dataclass(frozen=True)
class Arguments:
    """Conditions of the test."""

    checkpoint: Path
    """The checkpoint.pt of a run."""
    masks: Masks = ""
    """Masks of the test images; the masks of the training by default."""
    keep: tuple[str, ...] = ()
    """Modalities that are present; all by default."""
    machine: tyro.conf.OmitArgPrefixes[Computer] = field(default_factory=Computer)


def finished(path: Path) -> Result | None:
    """Read the result in a file; None if the file is missing or cannot be parsed."""
    try:
        result = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and "descriptors" in result else None


def score_under(checkpoint: Path, row: Row, machine: Machine) -> Result:
    """Score a trained model under the conditions of a row, as in metrics.json.

    The result is kept beside the checkpoint, and computed once for each content of the checkpoint.
    """
    parts = [row.masks, *row.keep, f"by {row.groups}" if row.groups else ""]
    name = "-".join(["test", *filter(None, parts)])
    kept = checkpoint.parent / "conditions" / f"{name}.json"
    # The digest ties a result to this checkpoint, not to an earlier epoch.
    result, content = finished(kept), digest_of(checkpoint) if checkpoint.is_file() else None
    if result is None or result.get("checkpoint") != content:
        result = {**_measure(checkpoint, row, machine), "checkpoint": content}
        write_text(kept, json.dumps(result, indent=2) + "\n")
    return result


def _measure(checkpoint: Path, row: Row, machine: Machine) -> Result:
    changes = {"masks": row.masks} if row.masks else {}
    trained = restore(checkpoint, changes, machine=machine, keep=row.keep)
    descriptors, headline = describe_test(trained)
    metrics = score(descriptors, trained.dataset.items, trained.protocol)
    samples = (trained.dataset[index] for index in range(len(trained.dataset)))
    masks = [sample.masks for sample in samples if sample.masks is not None]
    found = {
        "headline": headline,
        "descriptors": numbers_of(metrics),
        "foreground": torch.stack(masks).float().mean().item() if masks else None,
    }
    if row.groups:
        apart = score_groups(descriptors, trained.dataset.items, trained.protocol, row.groups)
        found["groups"] = {value: numbers_of(scores) for value, scores in apart.items()}
    return found


def main(arguments: Arguments) -> Result:
    """Print the scores of every descriptor in percent."""
    row = Row("", "", arguments.masks, arguments.keep)
    result = score_under(arguments.checkpoint, row, arguments.machine.machine())
    for name, numbers in result["descriptors"].items():
        print(f"{name:10}" + "".join(f"{kind:>8} {100 * value:5.1f}" for kind, value in numbers.items()))
    return result


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.robustness")
