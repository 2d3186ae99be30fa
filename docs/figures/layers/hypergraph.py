"""CHI: nine tokens of three bands on a plane, their hyperedges, and what the convolution makes of them."""

import math

import torch

from docs.figures.layers.drawing import BANDS, BLUE, CARD, EDGE, LINE, SOFT, circle, path, picture, rect, text
from stmi_layers import hypergraph_conv, incidence_statistics, similarity_incidence

# Directions of three tokens in each of the bands, in degrees: two things seen by all of them, and one token apart.
DEGREES = torch.tensor([[20.0, 112.0, 215.0], [34.0, 126.0, 290.0], [50.0, 140.0, 306.0]])
THRESHOLD = 0.9
CENTRE, RADIUS = (112, 146), 84


def nodes() -> torch.Tensor:
    """(1 nodes 2), the first band first."""
    angles = DEGREES.flatten().deg2rad()
    return torch.stack([angles.cos(), angles.sin()], dim=-1)[None]


def statistics(threshold: float) -> tuple[float, float]:
    """Mean size of a hyperedge, and the share that crosses bands."""
    size, _, crossing = incidence_statistics(similarity_incidence(nodes(), threshold), num_modalities=3)
    return size.item(), crossing.item()


def draw() -> str:
    parts = [
        text(112, 26, "Tokens by direction", bold=True),
        circle(*CENTRE, RADIUS, stroke=EDGE),
        *_hyperedges(),
        *_nodes(),
        *_legend(),
        text(14, 274, "The same tokens at three thresholds", anchor="start", bold=True),
        *_matrix(14, 1.01, "identity"),
        *_matrix(131, THRESHOLD, "in between"),
        *_matrix(248, -1.0, "everything"),
    ]
    return picture(
        458,
        "Tokens of all bands that point the same way share hyperedges",
        "Nine tokens of three bands on a circle. Tokens with a cosine of at least 0.9 share a hyperedge, across bands. "
        "An arrow leads each token to the mean it receives. Below, the incidence matrix at threshold 1.01, where it is "
        "the identity, at 0.9, and at -1, where every token is in every hyperedge.",
        *parts,
    )


def _place(x: float, y: float) -> tuple[float, float]:
    return CENTRE[0] + RADIUS * x, CENTRE[1] - RADIUS * y


def _hyperedges() -> list[str]:
    """Every hyperedge once, as a band around its tokens."""
    incidence = similarity_incidence(nodes(), THRESHOLD)[0]
    places = [_place(x, y) for x, y in nodes()[0].tolist()]
    edges = {tuple(edge.nonzero()[:, 0].tolist()) for edge in incidence.T}
    parts = []
    for edge in sorted(edges):
        around = sorted((places[node] for node in edge), key=lambda at: math.atan2(at[1] - 146, at[0] - 112))
        if len(around) == 1:
            x, y = around[0]
            parts.append(circle(x, y, 15, fill=BLUE, opacity=0.22))
        else:
            parts.append(path(around, stroke=BLUE, thick=30, fill=BLUE, opacity=0.22))
    return parts


def _nodes() -> list[str]:
    received = hypergraph_conv(nodes(), similarity_incidence(nodes(), THRESHOLD))[0].tolist()
    parts = []
    for index, (start, stop) in enumerate(zip(nodes()[0].tolist(), received, strict=True)):
        if math.dist(start, stop) > 0.05:
            parts.append(path([_place(*start), _place(*stop)], head="head"))
        x, y = _place(*start)
        parts.append(rect(x - 6, y - 6, 12, 12, fill=BANDS[index // 3], radius=3))
    return parts


def _legend() -> list[str]:
    parts = []
    for index, (name, colour) in enumerate(zip(("RGB", "NIR", "TIR"), BANDS, strict=True)):
        parts.append(rect(226, 54 + 22 * index, 12, 12, fill=colour, radius=3))
        parts.append(text(246, 65 + 22 * index, name, anchor="start"))
    parts.append(rect(222, 122, 20, 14, fill=BLUE, opacity=0.22, radius=7))
    parts.append(text(246, 134, "a hyperedge:", anchor="start"))
    parts.append(text(246, 151, "cosine ≥ 0.9", anchor="start", fill=SOFT))
    parts.append(path([(222, 172), (240, 172)], head="head"))
    parts.append(text(246, 176, "the mean", anchor="start"))
    parts.append(text(246, 193, "it receives", anchor="start", fill=SOFT))
    return parts


def _matrix(left: float, threshold: float, name: str) -> list[str]:
    size, crossing = statistics(threshold)
    label = f"τ = {threshold:g}"
    parts = [text(left + 49, 296, label), rect(left, 304, 99, 99, stroke=LINE, radius=0)]
    for row, edges in enumerate(similarity_incidence(nodes(), threshold)[0].tolist()):
        for column, member in enumerate(edges):
            if member:
                box = (left + 11 * column, 304 + 11 * row, 11, 11)
                parts.append(rect(*box, fill=BANDS[row // 3], radius=0, stroke=CARD))
    parts.append(text(left + 49, 418, name, size=12))
    parts.append(text(left + 49, 433, f"mean size {size:.2g}", size=12, fill=SOFT))
    parts.append(text(left + 49, 448, f"crossing {100 * crossing:.0f} %", size=12, fill=SOFT))
    return parts
