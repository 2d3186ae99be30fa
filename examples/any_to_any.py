"""Any-to-any retrieval: every subset of the modalities as query against every subset as gallery."""

import json
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path

import numpy as np
from torch import Tensor

from examples.restore import Trained, describe_test, reduced
from stmi_layers import reid_metrics
from stmi_layers.training import Item, Protocol
from stmi_layers.training.files import write_text

Subset = tuple[str, ...]
Matrix = Mapping[tuple[Subset, Subset], float]


def any_to_any(trained: Trained, descriptor: str | None = None) -> Matrix:
    """Compute the mAP of every pair of subsets: modalities of the queries, then modalities of the gallery.

    Args:
        trained: model and test split. A modality that an item lacks in the set is missing here, too; an item without
            any image of a subset is an error.
        descriptor: name of the descriptor to match by; the model's headline by default.
    """
    modalities = trained.run.data.modalities
    subsets = [some for size in range(1, len(modalities) + 1) for some in combinations(modalities, size)]
    found: dict[Subset, Tensor] = {}
    for subset in subsets:
        dataset = reduced(trained.dataset, trained.run, subset)
        descriptors, headline = describe_test(trained._replace(dataset=dataset), descriptor)
        found[subset] = descriptors[headline]
    items, protocol = trained.dataset.items, trained.protocol
    return {(one, other): score_pair(found[one], found[other], items, protocol) for one in subsets for other in subsets}


def score_pair(query: Tensor, gallery: Tensor, items: list[Item], protocol: Protocol) -> float:
    """Compute the mAP of queries from one table of descriptors in a gallery from another, a row per item in both."""
    queries, entries = protocol.split(items)
    match, drop = protocol.codes(items)
    metrics = reid_metrics(
        query[queries],
        gallery[entries],
        match[queries],
        match[entries],
        query_groups=drop[queries],
        gallery_groups=drop[entries],
    )
    return metrics.mAP


def subsets_of(matrix: Matrix) -> list[Subset]:
    """Return the subsets, in the order of the rows."""
    return list(dict.fromkeys(one for one, _ in matrix))


def disjoint_mean(matrix: Matrix) -> float:
    """Return the mean over pairs of subsets without a common modality; NaN for a single modality."""
    values = [value for (one, other), value in matrix.items() if not {*one} & {*other}]
    return float(np.mean(values)) if values else float("nan")


def as_text(matrix: Matrix) -> str:
    """Format the matrix as a table in percent."""
    subsets = subsets_of(matrix)
    names = ["+".join(subset) for subset in subsets]
    width = max(map(len, names)) + 2
    lines = [" " * width + "".join(f"{name:>{max(7, len(name) + 2)}}" for name in names)]
    for name, one in zip(names, subsets, strict=True):
        pairs = zip(names, subsets, strict=True)
        cells = [f"{100 * matrix[one, other]:>{max(7, len(column) + 2)}.1f}" for column, other in pairs]
        lines.append(f"{name:{width}}" + "".join(cells))
    return "\n".join([*lines, f"mean of pairs without a modality in common: {100 * disjoint_mean(matrix):.1f}"])


def write_any_to_any(matrix: Matrix, descriptor: str, out: Path) -> list[Path]:
    """Write the matrix as data and as a picture."""
    rows = [{"query": one, "gallery": other, "mAP": value} for (one, other), value in matrix.items()]
    content = {"descriptor": descriptor, "disjoint mAP": disjoint_mean(matrix), "pairs": rows}
    write_text(out / "any_to_any.json", json.dumps(content, indent=1) + "\n")
    from examples.figures import save

    return [out / "any_to_any.json", *save(draw(matrix, descriptor), out / "any_to_any.png")]


def draw(matrix: Matrix, descriptor: str):
    """Draw the matrix with its numbers."""
    from matplotlib.figure import Figure

    subsets = subsets_of(matrix)
    values = np.array([[100 * matrix[one, other] for other in subsets] for one in subsets])
    side = 1.6 + 0.75 * len(subsets)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axis = figure.subplots()
    shown = axis.imshow(values, cmap="viridis", vmin=0, vmax=100)
    names = ["+".join(subset) for subset in subsets]
    axis.set_xticks(range(len(names)), names, rotation=35, ha="right")
    axis.set_yticks(range(len(names)), names)
    axis.set(xlabel="modalities of the gallery", ylabel="modalities of the queries")
    axis.set_title(f"mAP by {descriptor}, in percent")
    for (row, column), value in np.ndenumerate(values):
        colour = "black" if value > 60 else "white"
        axis.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(shown, ax=axis, shrink=0.8)
    return figure
