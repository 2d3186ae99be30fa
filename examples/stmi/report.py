"""What an evaluation leaves behind: a table, metrics.json and a picture of ranked lists."""

import json
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from examples import figures
from examples.stmi.settings import Settings
from stmi_layers import ReIDMetrics
from stmi_layers.training.dataset import MultiModalDataset
from stmi_layers.training.protocol import Protocol, column


def headline(settings: Settings, names: Sequence[str]) -> str:
    """The descriptor that stands for the run: U where the model has one (`descriptor` chooses another).

    Args:
        settings: of the run.
        names: the features of the model; "all" and those joined by a "+" are made of them.
    """
    features = sorted({"G", "U", "T"}.intersection(names))
    if settings.descriptor == "auto":
        return "U" if "U" in features else "G"
    joined = len(features) > 1 if settings.descriptor == "all" else set(settings.descriptor.split("+")) <= {*features}
    if not joined:
        raise ValueError(
            f"descriptor must be one the model has, {features} or several of them joined; "
            f"received {settings.descriptor!r} (--descriptor)"
        )
    return settings.descriptor


def write_report(
    settings: Settings,
    dataset: MultiModalDataset,
    descriptors: dict[str, Tensor],
    metrics: dict[str, ReIDMetrics],
    *,
    protocol: Protocol,
    extra: dict[str, object] | None = None,
) -> list[Path]:
    """Write metrics.json and retrieval.png into `settings.out` and return their paths."""
    settings.out.mkdir(parents=True, exist_ok=True)
    chosen = headline(settings, list(descriptors))
    content = {
        "headline": chosen,
        "protocol": protocol.describe(dataset.items),
        "queries": metrics[chosen].num_queries,
        "skipped_queries": metrics[chosen].num_skipped,
        "descriptors": {name: as_numbers(value) for name, value in metrics.items()},
        **(extra or {}),
    }
    path = settings.out / "metrics.json"
    path.write_text(json.dumps(content, indent=2) + "\n")
    ranked = draw_retrieval(dataset, descriptors[chosen], chosen, protocol)
    return [path, *figures.save(ranked, settings.out / "retrieval.png")]


def as_numbers(metrics: ReIDMetrics) -> dict[str, float]:
    return {"mAP": metrics.mAP, **{f"R{rank}": value for rank, value in metrics.cmc.items()}, "mINP": metrics.mINP}


def draw_retrieval(dataset: MultiModalDataset, descriptor: Tensor, name: str, protocol: Protocol) -> Figure:
    """Six queries, evenly spread over all of them, with the five best matches of each."""
    shown, matches = protocol.best_matches(descriptor, dataset.items, queries=6, k=5)
    items = [dataset.items[index] for index in shown.tolist()]
    captions = [f"id {item.identity}, {protocol.drop} {column(item, protocol.drop)}" for item in items]
    title = f"Queries and their best matches by {name}; green is right, orange is wrong, the mask is outlined"
    return figures.retrieval(dataset, shown.tolist(), matches, title=title, captions=captions)


def table(metrics: dict[str, ReIDMetrics]) -> str:
    """A line per descriptor, in percent, and one about the queries that could not be scored."""
    lines = [f"{'':10}" + "".join(f"{name:>8}" for name in as_numbers(next(iter(metrics.values()))))]
    lines += [
        f"{name:10}" + "".join(f"{100 * value:8.1f}" for value in as_numbers(value).values())
        for name, value in metrics.items()
    ]
    first = next(iter(metrics.values()))
    if first.num_skipped:
        lines.append(
            f"{first.num_skipped} of {first.num_queries} queries are skipped: the gallery shows their identity from no "
            "other camera (or scene, see the protocol); add such images to the test split, or leave these out"
        )
    return "\n".join(lines)
