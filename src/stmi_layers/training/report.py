"""Results as a table and as metrics.json, and descriptors as data files."""

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from stmi_layers import ReIDMetrics
from stmi_layers.training.files import write_text, write_whole


def as_numbers(metrics: ReIDMetrics) -> dict[str, float]:
    """Return mAP, rank accuracies and mINP by name, as shares."""
    return {"mAP": metrics.mAP, **{f"R{rank}": value for rank, value in metrics.cmc.items()}, "mINP": metrics.mINP}


def table(metrics: Mapping[str, ReIDMetrics]) -> str:
    """Return a line per descriptor, in percent, and one about queries that could not be scored."""
    width = max(10, *(len(name) + 1 for name in metrics))
    lines = [" " * width + "".join(f"{name:>8}" for name in as_numbers(next(iter(metrics.values()))))]
    lines += [
        f"{name:{width}}" + "".join(f"{100 * value:8.1f}" for value in as_numbers(value).values())
        for name, value in metrics.items()
    ]
    first = next(iter(metrics.values()))
    if first.num_skipped:
        lines.append(
            f"{first.num_skipped} of {first.num_queries} queries are skipped: the gallery shows their identity from no "
            "other camera (or scene, see the protocol); add such images to the test split, or leave these queries out"
        )
    return "\n".join(lines)


def write_metrics(
    folder: Path,
    metrics: Mapping[str, ReIDMetrics],
    *,
    headline: str,
    protocol: str,
    split: str = "test",
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write metrics.json into `folder`, whole or not at all, and return its path.

    Args:
        folder: output folder, created if missing.
        metrics: metrics of every descriptor.
        headline: name of the descriptor that stands for the run.
        protocol: a line that describes the protocol.
        split: name of the split that was scored.
        extra: further entries.

    Raises:
        ValueError: when `headline` is not among the descriptors, or the file cannot be written.
    """
    if headline not in metrics:
        raise ValueError(f"headline must be one of the descriptors, {list(metrics)}; received {headline!r}")
    content = {
        "headline": headline,
        "split": split,
        "protocol": protocol,
        "queries": metrics[headline].num_queries,
        "skipped_queries": metrics[headline].num_skipped,
        "descriptors": {name: as_numbers(value) for name, value in metrics.items()},
        **(extra or {}),
    }
    path = folder / "metrics.json"
    write_text(path, json.dumps(content, indent=2) + "\n")
    return path


def write_features(folder: Path, descriptors: Mapping[str, Tensor], names: Sequence[str]) -> list[Path]:
    """Write descriptors as data: features.safetensors, or features.npz without safetensors, and names.json.

    Args:
        folder: output folder, created if missing.
        descriptors: one row per sample, by name.
        names: name of every sample, in the order of the rows.

    Returns:
        The paths of both files.

    Raises:
        ValueError: when a descriptor does not have one row per name, or a file cannot be written.
    """
    for name, rows in descriptors.items():
        if len(rows) != len(names):
            raise ValueError(f"descriptors must have a row per name, {len(names)}; {name!r} has {len(rows)}")
    # safetensors writes arrays that are not contiguous with wrong rows.
    arrays = {name: np.ascontiguousarray(rows.float().numpy()) for name, rows in descriptors.items()}
    if find_spec("safetensors") is None:
        path = folder / "features.npz"
        with write_whole(path) as file:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    else:
        from safetensors.numpy import save

        path = folder / "features.safetensors"
        with write_whole(path) as file:
            file.write(save(arrays))
    listed = folder / "names.json"
    write_text(listed, json.dumps(list(names), indent=0) + "\n")
    return [path, listed]
