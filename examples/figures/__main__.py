"""Draw what a trained model sees and finds: `python -m examples.figures --checkpoint runs/NAME/checkpoint.pt`.

Every figure is written as PNG and as SVG. Those that the model has no part for are left out, with the reason.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from matplotlib.figure import Figure

from examples import cli as command
from examples.figures import curves, save
from examples.figures.attention import draw_class_token, draw_semantic, pictures
from examples.figures.hyperedges import draw_hyperedges
from examples.figures.inside import look
from examples.figures.maps import draw_maps
from examples.figures.style import spread
from examples.stmi.evaluate import Trained, describe, restore, score
from examples.stmi.report import draw_retrieval, headline
from stmi_layers.training.splits import MissingModality, shorten

# Settings of a run that its figures may replace.
FROM_THE_RUN = ("data", "query_cameras", "missing_modality", "damaged", "device")


@dataclass(frozen=True)
class Arguments:
    checkpoint: Path
    """The checkpoint.pt of a run."""
    other_checkpoints: tuple[Path, ...] = ()
    """Those of other variants on the same test items, to draw their features side by side."""
    data: Path | None = None
    """Another set; the one of the run by default."""
    out: Path | None = None
    """Where the figures go; `figures` beside the checkpoint by default."""
    items: tuple[str, ...] = ()
    """Names of the test items to look into; by default `count` of them, evenly spread."""
    count: int = 2
    """How many, where no names are given."""
    max_points: int = 1000
    """Items on the maps of features at most, evenly spread over the test split."""
    query_cameras: tuple[int, ...] | None = None
    """Cameras that query the others; as in the run by default."""
    missing_modality: MissingModality | None = None
    """What to do about an image missing in some modality; as in the run by default."""
    damaged: Literal["error", "skip"] | None = None
    """What to do about files that cannot be decoded; as in the run by default."""
    device: str = "auto"
    """cpu, cuda, ...; "auto" takes CUDA when there is one."""
    threads: int = 0
    """CPU threads; 0 leaves the choice to torch."""


def main(arguments: Arguments) -> list[Path]:
    """Draw everything; the files written."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    changes = {name: getattr(arguments, name) for name in FROM_THE_RUN}
    trained = restore(arguments.checkpoint, changes)
    indices = _choose(trained, arguments)
    out = arguments.out or arguments.checkpoint.parent / "figures"
    out.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []

    def write(name: str, figure: Figure) -> None:
        written.extend(save(figure, out / f"{name}.png", out / f"{name}.svg"))

    if trained.history:
        write("curves", curves(trained.history))
    places = spread(len(trained.dataset), arguments.max_points)
    identities = [trained.dataset.items[place].identity for place in places]
    panels, chosen, descriptor = describe_panels(trained)
    write("retrieval", draw_retrieval(trained.dataset, descriptor, chosen, trained.protocol))
    panels = {name: features[places] for name, features in panels.items()}
    write("features", draw_maps(panels, identities, title="Test features by descriptor, coloured by identity"))
    if arguments.other_checkpoints:
        variants = compare_variants(trained, arguments, changes)
        panels = {name: features[places] for name, features in variants.items()}
        write("variants", draw_maps(panels, identities, title="Test features by variant, coloured by identity"))
    left_out = _look_inside(trained, indices, write)
    print(*written, sep="\n")
    for name, reason in left_out.items():
        print(f"{name} is left out: {reason}")
    return written


def _look_inside(trained: Trained, indices: list[int], write) -> dict[str, str]:
    """Attention maps, semantic tokens and hyperedges of some items; what is left out, and why."""
    looks, shown = look(trained, indices), pictures(trained.dataset, indices)
    modalities, prior = trained.settings.modalities, trained.model.text_encoder is not None
    if looks.class_token is not None:
        write("attention", draw_class_token(looks, shown, modalities, trained.settings.foreground_threshold))
    if looks.semantic is not None:
        write("tokens", draw_semantic(looks, shown, modalities, prior=prior))
    if looks.incidence is not None:
        write("hyperedges", draw_hyperedges(looks, shown, modalities, prior=prior))
    return looks.left_out


def describe_panels(trained: Trained) -> tuple[dict[str, torch.Tensor], str, torch.Tensor]:
    """Features by a title that says how well they retrieve, the name of the headline descriptor, and its features."""
    descriptors = describe(
        trained.model,
        trained.dataset,
        trained.tokenizer,
        device=trained.device,
        descriptor=trained.settings.descriptor,
    )
    metrics = score(descriptors, trained.dataset.items, trained.protocol)
    chosen = headline(trained.settings, list(descriptors))
    panels = {f"{name}, mAP {100 * metrics[name].mAP:.1f} %": value for name, value in descriptors.items()}
    return panels, chosen, descriptors[chosen]


def compare_variants(trained: Trained, arguments: Arguments, changes: dict) -> dict[str, torch.Tensor]:
    """The headline features of every checkpoint by its title, this one last.

    Raises:
        ValueError: when a checkpoint is tested on other items.
    """
    names = [item.name for item in trained.dataset.items]
    variants: dict[str, torch.Tensor] = {}
    for path in (*arguments.other_checkpoints, arguments.checkpoint):
        other = trained if path == arguments.checkpoint else restore(path, changes)
        if [item.name for item in other.dataset.items] != names:
            raise ValueError(
                f"other_checkpoints must be tested on the items of {arguments.checkpoint}, {len(names)} of "
                f"{trained.settings.data}; {path} is on {len(other.dataset.items)} of {other.settings.data} (--data)"
            )
        panels, chosen, descriptor = describe_panels(other)
        title = next(title for title in panels if title.startswith(f"{chosen},"))
        variants[f"{path.resolve().parent.name}: {title}"] = descriptor
    return variants


def _choose(trained: Trained, arguments: Arguments) -> list[int]:
    """The items to look into, as places in the dataset."""
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
    command.run(main, Arguments, __doc__, prog="python -m examples.figures")
