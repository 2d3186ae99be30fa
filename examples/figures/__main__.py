"""Draw figures of a trained model: `python -m examples.figures --checkpoint runs/NAME/checkpoint.pt`.

Every figure is written as PNG and as SVG. Figures of parts that the model lacks are left out, with the reason.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tyro
from matplotlib.figure import Figure
from torch import Tensor

from examples import cli
from examples.figures import curves, ranked_lists, save
from examples.figures.attention import draw_class_token, pictures
from examples.figures.look import look
from examples.figures.maps import draw_maps
from examples.figures.style import spread
from examples.methods import load_method
from examples.restore import Computer, OtherData, Trained, describe_test, restore
from stmi_layers.training import collate, score
from stmi_layers.training.messages import shorten


@dataclass(frozen=True)
class Arguments:
    """Figures of a checkpoint."""

    checkpoint: Path
    """The checkpoint.pt of a run."""
    other_checkpoints: tuple[Path, ...] = ()
    """Checkpoints of other variants on the same test items, whose features are drawn beside those of `checkpoint`."""
    out: Path | None = None
    """Folder of the figures; `figures` beside the checkpoint by default."""
    items: tuple[str, ...] = ()
    """Names of the test items for attention maps; by default `count` items, evenly spread."""
    count: int = 2
    """Number of test items for attention maps, if `items` is not given."""
    max_points: int = 1000
    """Largest number of items on the maps of features, evenly spread over the test split."""
    data: tyro.conf.OmitArgPrefixes[OtherData] = field(default_factory=OtherData)
    machine: tyro.conf.OmitArgPrefixes[Computer] = field(default_factory=Computer)


def main(arguments: Arguments) -> list[Path]:
    """Draw all figures and return the written files."""
    trained = restore(arguments.checkpoint, arguments.data.changes(), machine=arguments.machine.machine())
    indices = _choose(trained, arguments)
    out = arguments.out or arguments.checkpoint.parent / "figures"
    variants = compare_variants(trained, arguments) if arguments.other_checkpoints else {}
    written: list[Path] = []

    def write(name: str, figure: Figure) -> None:
        written.extend(save(figure, out / f"{name}.png", out / f"{name}.svg"))

    if trained.history:
        write("curves", curves(trained.history))
    places = spread(len(trained.dataset), arguments.max_points)
    identities = [trained.dataset.items[place].identity for place in places]
    panels, chosen, descriptor = describe_panels(trained)
    write("retrieval", ranked_lists(trained.dataset, descriptor, chosen, trained.protocol))
    panels = {name: features[places] for name, features in panels.items()}
    write("features", draw_maps(panels, identities, title="Test features by descriptor, coloured by identity"))
    if variants:
        panels = {name: features[places] for name, features in variants.items()}
        write("variants", draw_maps(panels, identities, title="Test features by variant, coloured by identity"))
    figures, left_out = look_inside(trained, indices)
    for name, figure in figures.items():
        write(name, figure)
    print(*written, sep="\n")
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}")
    return written


def look_inside(trained: Trained, indices: Sequence[int]) -> tuple[dict[str, Figure], dict[str, str]]:
    """Draw the tower's attention and the method's figures of items; return figures, and reasons for missing ones."""
    batch = collate([trained.dataset[index] for index in indices]).to(trained.device)
    shown, modalities = pictures(trained.dataset, indices), trained.run.data.modalities
    figures, left_out = {}, {}
    backbone = getattr(trained.model, "backbone", None)
    seen = "the model has no single tower by the name backbone" if backbone is None else look(backbone, batch)
    if isinstance(seen, str):
        left_out["attention"] = seen
    else:
        threshold = 0.5 if trained.run.tower is None else trained.run.tower.foreground_threshold
        figures["attention"] = draw_class_token(seen, shown, modalities, threshold)
    own = load_method(trained.run.method).part("figures")
    more = own.draw(trained, batch, shown) if own is not None else ({}, {})
    return figures | more[0], left_out | more[1]


def describe_panels(trained: Trained) -> tuple[dict[str, Tensor], str, Tensor]:
    """Return features by a title with their mAP, the name of the headline descriptor, and its features."""
    descriptors, chosen = describe_test(trained)
    metrics = score(descriptors, trained.dataset.items, trained.protocol)
    panels = {f"{name}, mAP {100 * metrics[name].mAP:.1f} %": value for name, value in descriptors.items()}
    return panels, chosen, descriptors[chosen]


def compare_variants(trained: Trained, arguments: Arguments) -> dict[str, Tensor]:
    """Return the headline features of every checkpoint by title; the main checkpoint is the last.

    Raises:
        ValueError: when a checkpoint is tested on other items.
    """
    names = [item.name for item in trained.dataset.items]
    changes = arguments.data.changes()
    variants: dict[str, Tensor] = {}
    for path in (*arguments.other_checkpoints, arguments.checkpoint):
        other = trained if path == arguments.checkpoint else restore(path, changes, machine=trained.machine)
        if [item.name for item in other.dataset.items] != names:
            raise ValueError(
                f"other_checkpoints must be tested on the items of {arguments.checkpoint}, {len(names)} of "
                f"{trained.run.data.root}; {path} is on {len(other.dataset.items)} of {other.run.data.root} (--data)"
            )
        panels, chosen, descriptor = describe_panels(other)
        title = next(title for title in panels if title.startswith(f"{chosen},"))
        variants[f"{path.resolve().parent.name}: {title}"] = descriptor
    return variants


def _choose(trained: Trained, arguments: Arguments) -> list[int]:
    """Choose the items for attention maps, as indices into the dataset."""
    places = {item.name: place for place, item in enumerate(trained.dataset.items)}
    if unknown := [name for name in arguments.items if name not in places]:
        raise ValueError(
            f"items must be names of the test split, such as {shorten(list(places))}; received {shorten(unknown)} "
            "(--items)"
        )
    if min(arguments.count, arguments.max_points) < 1:
        received = f"count={arguments.count}, max_points={arguments.max_points}"
        raise ValueError(f"count and max_points must be at least 1; received {received}")
    return [places[name] for name in arguments.items] or spread(len(places), arguments.count)


if __name__ == "__main__":
    cli.run(main, Arguments, __doc__, prog="python -m examples.figures")
