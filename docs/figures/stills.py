"""The interactive figures at rest, from the numbers that they compute with."""

import base64
import json
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from torch import Tensor

from stmi_layers import modulated_attention, similarity_incidence

QUERY = 35  # the patch in row 5, column 4
STRENGTH = 0.7
MARKERS, COLOURS = "os^Dv", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9")


def decoded(text: str, *shape: int) -> Tensor:
    """The inverse of the encoding in `interactive.py`."""
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.float32).reshape(shape)


def attention_weights(
    content: dict[str, Any], image: int, foreground: Tensor, strengths: tuple[float, float]
) -> Tensor:
    """Weights (heads tokens tokens) of the library: what attention returns when the values are the identity."""
    heads, width, tokens = content["heads"], content["head_dim"], len(foreground)
    query, key = (decoded(content["images"][image][name], 1, heads, tokens, width) for name in ("query", "key"))
    # The identity, as many columns at a time as the values of a head are wide.
    pieces = torch.eye(tokens).split(width, dim=1)
    values = [torch.nn.functional.pad(piece, (0, width - piece.shape[1])) for piece in pieces]
    alpha, beta = (torch.tensor([strength]) for strength in strengths)
    attended = [
        modulated_attention(query, key, value.expand(1, heads, -1, -1), foreground[None], alpha, beta)[0]
        for value in values
    ]
    return torch.cat(attended, dim=-1)[..., :tokens]


def attention(folder: Path) -> None:
    content = json.loads((folder / "sfm.json").read_text())
    first = content["images"][0]
    foreground = torch.tensor([token == "1" for token in first["foreground"]])
    grid = tuple(content["grid"])
    weights = [attention_weights(content, 0, foreground, (s, s)).mean(0)[QUERY + 1, 1:] for s in (0.0, STRENGTH)]
    top = max(float(weight.max()) for weight in weights)
    figure = Figure(figsize=(9, 3.3), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 3)
    picture = imread(folder / first["file"])
    size = picture.shape[:2]
    shades = [0.55 * ~foreground[1:].reshape(grid), *(0.9 * weight.reshape(grid) / top for weight in weights)]
    titles = ["Mask of patches", "Plain attention", f"Modulated, strengths {STRENGTH}"]
    for axis, shade, title in zip(axes, shades, titles, strict=True):
        overlay(axis, picture if title == titles[0] else picture[..., :3].mean(-1) * 0.45, shade, size)
        axis.set_title(title)
    for axis in axes[1:]:
        x, y = QUERY % grid[1], QUERY // grid[1]
        axis.add_patch(square(x * size[1] / grid[1], y * size[0] / grid[0], size[1] / grid[1]))
    figure.savefig(folder / "sfm.png", dpi=80, metadata={"Software": None})


def overlay(axis: Axes, picture: Any, shade: Tensor, size: tuple[int, int]) -> None:
    extent = (0, size[1], size[0], 0)
    axis.imshow(picture, extent=extent, cmap="gray", vmin=0, vmax=1)
    colour = torch.tensor([0.0, 0.0, 0.0] if picture.ndim == 3 else [1.0, 0.72, 0.1])
    rgba = torch.cat([colour.expand(*shade.shape, 3), shade[..., None].float()], dim=-1)
    axis.imshow(rgba.numpy(), extent=extent, interpolation="nearest")
    axis.set(xticks=[], yticks=[])


def square(x: float, y: float, side: float) -> Rectangle:
    return Rectangle((x, y), side, side, fill=False, edgecolor="#00b3ff", linewidth=3)


def hypergraph(folder: Path) -> None:
    content = json.loads((folder / "chi.json").read_text())
    sample, names, count = content["samples"][0], content["modalities"], content["tokens"]
    nodes = decoded(sample["nodes"], 1, len(names) * count, content["dim"])
    incidence = similarity_incidence(nodes, content["threshold"])[0]
    figure = Figure(figsize=(9, 4), layout="constrained", facecolor="white")
    plane, matrix = figure.subplots(1, 2)
    places = torch.tensor(sample["places"])
    for i, j in incidence.triu(1).nonzero().tolist():
        plane.plot(*places[[i, j]].T, color="#999999", linewidth=0.8, zorder=1)
    for m, name in enumerate(names):
        x, y = places[m * count : (m + 1) * count].T
        plane.scatter(x, y, s=90, marker=MARKERS[m % 5], color=COLOURS[m % 5], label=name, zorder=2)
    plane.set(xticks=[], yticks=[], title=f"Semantic tokens; lines join cosines from {content['threshold']} on")
    plane.legend(loc="upper center", bbox_to_anchor=(0.5, 0.0), ncols=len(names), frameon=False)
    matrix.imshow(incidence, cmap="Greys", vmin=0, vmax=1.4)
    matrix.set(xticks=[], yticks=[], xlabel="hyperedges", ylabel="nodes", title="Incidence")
    figure.savefig(folder / "chi.png", dpi=80, metadata={"Software": None})
