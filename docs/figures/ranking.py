"""Picture of the home page: a query and its ranking, by the model that `make demo` trains.

make demo
python -m docs.figures.ranking --checkpoint runs/demo/checkpoint.pt
"""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from docs.figures.layers.drawing import GREEN, INK, RED, SOFT, WIDTH, lines, picture, rect, text
from examples import cli as command
from examples.restore import restore
from stmi_layers import rank_gallery
from stmi_layers.training import Item, Machine, MultiModalDataset, Protocol, describe

OUT = Path(__file__).parents[1] / "assets" / "ranking.svg"
BEST = 5
SHOWN = {"RGB": "RGB", "NI": "NIR", "TI": "TIR"}
LEFT, TOP, CELL, GAP = 36, 46, 46, 6


@dataclass(frozen=True)
class Arguments:
    checkpoint: Path
    """The checkpoint.pt of a run on the synthetic set."""
    query: str = ""
    """Test item that queries, by file name; by default the first with right and wrong matches among the best."""


def main(arguments: Arguments) -> None:
    trained = restore(arguments.checkpoint, machine=Machine(device="cpu"))
    found = describe(trained.model, trained.dataset, device="cpu")
    ranking = rank(found["U"], trained.dataset.items, trained.protocol)
    query = choose(ranking, trained.dataset.items, arguments.query)
    OUT.write_text(draw(trained.dataset, query, ranking[query].tolist(), trained.run.data.modalities))
    print(OUT)


def rank(descriptor: Tensor, items: list[Item], protocol: Protocol) -> Tensor:
    """Indices of the best matches of every item, entries of its own camera left out."""
    match, drop = protocol.codes(items)
    return rank_gallery(descriptor, descriptor, match, match, query_groups=drop, gallery_groups=drop, k=BEST)


def choose(ranking: Tensor, items: list[Item], name: str) -> int:
    """The item of that name, or the first whose ranking has two right matches in front and a wrong one behind."""
    for query, best in enumerate(ranking.tolist()):
        right = [items[match].identity == items[query].identity for match in best]
        if Path(items[query].name).stem == name or (not name and all(right[:2]) and not all(right)):
            return query
    raise ValueError(f"query must be a test item by its file name; received {name!r}")


def draw(dataset: MultiModalDataset, query: int, best: list[int], modalities: tuple[str, ...]) -> str:
    """The whole file: a column for the query and one per match, a row per band."""
    identity = dataset.items[query].identity
    parts = lines(LEFT, 20, "Query", anchor="start") + lines(LEFT + CELL + 2 * GAP, 20, "Ranking", anchor="start")
    for row, modality in enumerate(modalities):
        middle = TOP + row * (CELL + 3) + CELL / 2 + 4
        parts.append(text(4, middle, SHOWN.get(modality, modality), size=12, fill=SOFT, anchor="start"))
    for column, index in enumerate([query, *best]):
        left = LEFT + column * (CELL + GAP) + (GAP if column else 0)
        right = dataset.items[index].identity == identity
        colour = INK if column == 0 else GREEN if right else RED
        height = len(modalities) * (CELL + 3)
        label = "" if column == 0 else f"{column} {'✓' if right else '✗'}"
        parts += [text(left + CELL / 2, TOP - 9, label, fill=colour, bold=True)] if label else []
        parts.append(rect(left - 2, TOP - 3, CELL + 4, height + 3, fill=colour))
        for row, image in enumerate(dataset.picture(index)[0]):
            parts.append(embedded(image, left, TOP + row * (CELL + 3)))
    bottom = TOP + len(modalities) * (CELL + 3)
    parts += lines(WIDTH / 2, bottom + 18, "✓ the same vehicle, ✗ another vehicle")
    verdicts = ["right" if dataset.items[index].identity == identity else "wrong" for index in best]
    return picture(
        bottom + 30,
        "A query and its ranking",
        f"A vehicle in RGB, near and thermal infrared, and the five entries nearest to it: {', '.join(verdicts)}",
        *parts,
    )


def embedded(image: np.ndarray, left: float, top: float) -> str:
    """The image inside of the SVG, so that the page loads one file."""
    file = io.BytesIO()
    Image.fromarray(image).quantize(64).save(file, "PNG", optimize=True)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<image x="{left}" y="{top}" width="{CELL}" height="{CELL}" href="data:image/png;base64,{data}"/>'


if __name__ == "__main__":
    with torch.no_grad():
        command.run(main, Arguments, __doc__)
