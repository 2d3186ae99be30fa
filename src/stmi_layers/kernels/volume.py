"""Volumes of exchanged anchors, with their gradient in closed form.

For batches of usual size, autograd would spend most of the time on the graph of Gram-Schmidt.
"""

from typing import Any

import torch
from torch import Tensor


def exchanged_volumes(features: Tensor, anchor: int, present: Tensor | None = None) -> tuple[Tensor, ...]:
    """Compute the volume of each sample's anchor and each sample's other vectors, by plain operations.

    Args:
        features: features, (batch modalities dim); 0 where a modality is absent.
        anchor: index of the modality that is combined with other samples.
        present: True for the modalities that a sample has, (batch modalities); None for all.

    Returns:
        The volumes (batch batch), with anchors in the rows. Then the inputs of a gradient: the volumes of the other
        vectors alone, the distances of the anchors from the spans of these vectors, and the offsets of the projected
        anchors from the first vector, (vectors batch batch), along each direction of the span.
    """
    anchors, base, differences, counts = _vectors(features, anchor, present)
    lengths, directions = _orthonormal([base, *differences])
    size = lengths[0] if counts is None else torch.where(counts[0], lengths[0], 1.0)
    for index, length in enumerate(lengths[1:], start=1):
        size = size * (length if counts is None else torch.where(counts[index], length, 1.0))
    distance, offsets = _distances(anchors, base, directions)
    # A feature is nearest to the features of its own sample: the residual gives this distance all its digits.
    own = torch.linalg.vector_norm(_orthogonal(anchors - base, directions), dim=1)
    itself = torch.eye(own.shape[0], dtype=torch.bool, device=own.device)
    distance = torch.where(itself, own, distance)
    if present is not None:
        distance = torch.where(present[:, anchor, None], distance, 1.0)
    return distance * size, size, distance, offsets


def _vectors(
    features: Tensor, anchor: int, present: Tensor | None
) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor] | None]:
    """Split into anchors, first present other vector (the base), differences of later vectors from it, and presence."""
    rest = [modality for modality in range(features.shape[1]) if modality != anchor]
    anchors, others = features[:, anchor], [features[:, modality] for modality in rest]
    if present is None:
        return anchors, others[0], [other - others[0] for other in others[1:]], None
    first, later = _first_and_later(present, rest)
    base = features.new_zeros(anchors.shape)
    for other, is_first in zip(others, first, strict=True):
        base = torch.where(is_first[:, None], other, base)
    differences = [torch.where(counts[:, None], other - base, 0.0) for other, counts in zip(others, later, strict=True)]
    return anchors, base, differences, [present[:, rest].any(dim=1), *later]


def _first_and_later(present: Tensor, rest: list[int]) -> tuple[list[Tensor], list[Tensor]]:
    """Mark the first modality of `rest` that a sample has, and the later present ones: lists of (batch) masks."""
    there = present[:, rest]
    first = there & (there.cumsum(dim=1) == 1)
    return list(first.unbind(1)), list((there & ~first).unbind(1))


def _orthonormal(vectors: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Run Gram-Schmidt; return lengths (batch) and directions (batch dim), both 0 for a vector in the earlier span."""
    lengths: list[Tensor] = []
    directions: list[Tensor] = []
    for vector in vectors:
        outside = _orthogonal(vector, directions)
        lengths.append(torch.linalg.vector_norm(outside, dim=1))
        directions.append(outside / torch.where(lengths[-1] > 0, lengths[-1], 1.0)[:, None])
    return lengths, directions


def _orthogonal(vectors: Tensor, directions: list[Tensor]) -> Tensor:
    """Subtract the parts along the directions, twice, because rounding leaves a rest the first time."""
    for direction in (*directions, *directions):
        vectors = torch.addcmul(vectors, (direction * vectors).sum(dim=1, keepdim=True), direction, value=-1)
    return vectors


def _distances(anchors: Tensor, base: Tensor, directions: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the distance of every anchor from every span, by matrix products, and its offsets from the base inside."""
    centre = base.detach().mean(dim=0)  # a common offset would cost digits
    anchors, base = anchors - centre, base - centre
    offsets = torch.stack(
        [torch.addmm((direction * base).sum(dim=1), anchors, direction.T, beta=-1) for direction in directions]
    )
    squares = anchors.square().sum(dim=1)[:, None] + base.square().sum(dim=1)
    squares = torch.addmm(squares, anchors, base.T, alpha=-2) - offsets.square().sum(dim=0)
    inside = squares <= 0
    return torch.where(inside, 0.0, torch.where(inside, 1.0, squares).sqrt()), offsets


class ExchangedVolumes(torch.autograd.Function):
    r"""Computes $V_{ij}$, the volume of the anchor $a_i$ and the vectors $w_{j1}, w_{j2}, \dots$ of the sample $j$.

    The readable reference is `exchanged_volumes`, which also runs without a gradient and while a graph is captured.
    $V_{ij} = A_j d_{ij}$, where $A_j$ is the volume of the $w_j$ and $d_{ij} = \lVert r_{ij} \rVert$ is the distance of
    $a_i$ from their span. With $a_i - r_{ij} = \sum_k c_{ijk} w_{jk}$ and the dual vectors $w^*_{jk}$, the gradient is

    $$\frac{\partial V_{ij}}{\partial a_i} = \frac{A_j}{d_{ij}} r_{ij} \qquad \frac{\partial V_{ij}}{\partial w_{jk}} =
    V_{ij} w^*_{jk} - c_{ijk} \frac{A_j}{d_{ij}} r_{ij}$$

    and 0 where $d_{ij}$ is 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(features: Tensor, anchor: int, present: Tensor | None) -> tuple[Tensor, ...]:
        """Return the results of `exchanged_volumes`."""
        return exchanged_volumes(features, anchor, present)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        features, ctx.anchor, present = inputs
        ctx.save_for_backward(features, present, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *of_others: Tensor | None) -> tuple[Tensor | None, None, None]:
        if any(gradient is not None for gradient in of_others):
            raise NotImplementedError(
                "gram_volume can be differentiated only once; received a second differentiation. "
                "Detach the gradient, or leave create_graph off"
            )
        if upstream is None:
            return None, None, None
        features, present, size, distance, offsets = ctx.saved_tensors
        anchors, base, differences, _ = _vectors(features, ctx.anchor, present)
        lengths, directions = _orthonormal([base, *differences])
        coefficients = _coefficients(differences, directions)
        del differences  # here and below, to save memory in the pass that uses most
        pull = upstream * size / torch.where(distance > 0, distance, torch.inf)
        if present is not None:
            pull = torch.where(present[:, ctx.anchor, None], pull, 0.0)
        of_anchors, (total, *along) = _pulled(pull, anchors, base, directions, offsets)
        growth = ((upstream * distance).sum(dim=0) * size)[:, None]
        for index, direction in enumerate(directions):
            along[index] = torch.addcmul(along[index].neg_(), growth, direction)
        del direction, directions
        of_base, *of_differences = _along_vectors(along, coefficients, lengths)
        return _of_features(of_anchors, of_base.sub_(total), of_differences, ctx.anchor, present), None, None


def _pulled(
    pull: Tensor, anchors: Tensor, base: Tensor, directions: list[Tensor], offsets: Tensor
) -> tuple[Tensor, list[Tensor]]:
    r"""Sum the residuals $r_{ij} = a_i - u_j - \sum_l s_{ijl} q_{jl}$, each times `pull`.

    Returns:
        The sum over the columns, (batch dim), and the sums over the rows, times 1 and times each of the `offsets` $s$:
        one tensor (batch dim) more than there are directions.
    """
    own = pull.diagonal()
    pull = pull - torch.diag(own)  # a sample's own residual is computed exactly, below
    itself = own[:, None] * _orthogonal(anchors - base, directions)
    factors = torch.cat([torch.ones_like(offsets[:1]), offsets])
    weights = pull * factors
    centre = base.mean(dim=0)
    anchors, parts = anchors - centre, [base - centre, *directions]
    shares = (weights[:, None] * factors).sum(dim=2)
    of_columns = []
    for weight, factor, row in zip(weights, factors, shares, strict=True):
        column = torch.addcmul(weight.T @ anchors, factor.diagonal()[:, None], itself)
        for share, part in zip(row, parts, strict=True):
            column = torch.addcmul(column, share[:, None], part, value=-1)
        of_columns.append(column)
    of_rows = torch.addcmul(itself, pull.sum(dim=1, keepdim=True), anchors)
    del itself, anchors
    for weight, part in zip(weights, parts, strict=True):
        of_rows = torch.addmm(of_rows, weight, part, alpha=-1)
    return of_rows, of_columns


def _coefficients(differences: list[Tensor], directions: list[Tensor]) -> list[list[Tensor]]:
    """Return the components (batch 1) of each later vector along each direction: a lower triangle, by columns."""
    return [
        [(later * direction).sum(dim=1, keepdim=True) for later in differences[index:]]
        for index, direction in enumerate(directions)
    ]


def _along_vectors(rows: list[Tensor], coefficients: list[list[Tensor]], lengths: list[Tensor]) -> list[Tensor]:
    """Solve the triangular system of the coefficients with the right sides `rows`, and overwrite `rows`.

    The diagonal of the triangle holds the lengths, and 1 in place of a length of 0.
    """
    for index in reversed(range(len(rows))):
        for later, found in zip(coefficients[index], rows[index + 1 :], strict=True):
            rows[index] = torch.addcmul(rows[index], later, found, value=-1)
        rows[index] = rows[index] / torch.where(lengths[index] > 0, lengths[index], 1.0)[:, None]
    return rows


def _of_features(
    of_anchors: Tensor, of_base: Tensor, of_differences: list[Tensor], anchor: int, present: Tensor | None
) -> Tensor:
    """Compute the gradient of the features from the gradients of the results of `_vectors`."""
    if present is None:
        of_others = [of_base - sum(of_differences), *of_differences] if of_differences else [of_base]
    else:
        rest = [modality for modality in range(present.shape[1]) if modality != anchor]
        first, later = _first_and_later(present, rest)
        kept = [torch.where(counts[:, None], part, 0.0) for part, counts in zip(of_differences, later, strict=True)]
        of_base = of_base - sum(kept)
        of_others = [torch.where(chosen[:, None], of_base, part) for chosen, part in zip(first, kept, strict=True)]
    return torch.stack([*of_others[:anchor], of_anchors, *of_others[anchor:]], dim=1)
