"""Evaluate a trained model: `python -m examples.evaluate --checkpoint runs/NAME/checkpoint.pt`.

Only the checkpoint is needed. Every feature of the model, and all of them joined, are scored in one pass.
"""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from examples import cli
from examples.any_to_any import any_to_any, as_text, write_any_to_any
from examples.groups import numbers_of, score_groups
from examples.restore import Computer, OtherData, describe_test, restore
from stmi_layers import ReIDMetrics
from stmi_layers.training import score, table, write_features, write_metrics


@dataclass(frozen=True)
class Arguments:
    """Evaluation of a checkpoint on the test split of its own data, or of other data in any layout."""

    checkpoint: Path
    """The checkpoint.pt of a run."""
    out: Path | None = None
    """Folder of metrics.json and retrieval.png; `evaluation` beside the checkpoint by default."""
    descriptor: str | None = None
    """Descriptor of the headline and of the figure: a feature of the model, several joined as in G+T, or all; the
    model's headline by default."""
    rerank: bool = False
    """Also report the scores after k-reciprocal re-ranking."""
    any_to_any: bool = False
    """Also score every subset of the modalities as query against every subset as gallery: any_to_any.json and .png."""
    groups: str = ""
    """Column of the set, such as a column of items.csv: also score the queries of each of its values separately."""
    features: bool = False
    """Also write the descriptors of all test items as data."""
    data: tyro.conf.OmitArgPrefixes[OtherData] = field(default_factory=OtherData)
    machine: tyro.conf.OmitArgPrefixes[Computer] = field(default_factory=Computer)


def main(arguments: Arguments) -> dict[str, ReIDMetrics]:
    """Score a checkpoint, print a table, and write metrics.json and a figure."""
    out = arguments.out or arguments.checkpoint.parent / "evaluation"
    trained = restore(arguments.checkpoint, arguments.data.changes(), machine=arguments.machine.machine())
    # An unknown descriptor is refused now, not after all images have been described.
    refuse_unknown(arguments.descriptor, trained.model.widths)
    dataset, protocol = trained.dataset, trained.protocol
    descriptors, headline = describe_test(trained, arguments.descriptor)
    metrics = score(descriptors, dataset.items, protocol)
    print(table(metrics))
    extra: dict[str, object] = {}
    if arguments.rerank:
        reranked = score(descriptors, dataset.items, protocol, rerank=True)
        print("after k-reciprocal re-ranking:", table(reranked), sep="\n")
        extra["reranked"] = numbers_of(reranked)
    if arguments.groups:
        apart = score_groups(descriptors, dataset.items, protocol, arguments.groups)
        for value, scores in apart.items():
            print(f"queries of {arguments.groups} {value}, {scores[headline].num_queries}:", table(scores), sep="\n")
        extra["groups"] = {value: numbers_of(scores) for value, scores in apart.items()}
    line = protocol.describe(dataset.items)
    paths = [write_metrics(out, metrics, headline=headline, protocol=line, split=dataset.split, extra=extra)]
    if arguments.features:
        paths += write_features(out, descriptors, [item.name for item in dataset.items])
    if arguments.any_to_any:
        matrix = any_to_any(trained, arguments.descriptor)
        print(
            f"mAP of every subset as query (rows) against every subset as gallery, by {headline}:",
            as_text(matrix),
            sep="\n",
        )
        paths += write_any_to_any(matrix, headline, out)
    from examples.figures import ranked_lists, save

    paths += save(ranked_lists(dataset, descriptors[headline], headline, protocol), out / "retrieval.png")
    print(f"protocol: {line}", *paths, sep="\n")
    return metrics


def refuse_unknown(descriptor: str | None, widths: dict[str, int]) -> None:
    """Refuse a descriptor that cannot be made of the features of a model."""
    if descriptor is None or descriptor == "all" or set(descriptor.split("+")) <= widths.keys():
        return
    raise ValueError(
        f"descriptor must be one the model has, {list(widths)}, several joined by +, or all; received {descriptor!r}"
    )


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.evaluate")
