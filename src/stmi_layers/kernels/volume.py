"""Volumes of exchanged anchors with their gradient in closed form.

On a batch of usual size, autograd would spend most of the time on its bookkeeping of Gram-Schmidt.
"""

from typing import Any

import torch
from torch import Tensor


def exchanged_volumes(
    anchors: Tensor, vectors: Tensor, counts: Tensor | None = None, has_anchor: Tensor | None = None
) -> tuple[Tensor, ...]:
    """Volume of each sample's anchor and each sample's vectors, as plain operations.

    Args:
        anchors: (batch dim).
        vectors: (vectors batch dim); distances are exact to the digits of their distance from the first one.
        counts: True for the vectors that a sample has, (vectors batch); the others are zero. None for all.
        has_anchor: True for the samples that have an anchor, (batch).

    Returns:
        The volumes, anchors in the rows, (batch batch); then what a gradient needs: orthonormal directions of the
        vectors, their lengths apart from the directions before them, the volume of the vectors alone, the distance of
        the anchors from their span, the anchors less the first vector along the directions, (batch vectors batch), and
        the part of each sample's own anchor outside the span.
    """
    lengths, directions = _orthonormal(vectors)
    size = (lengths if counts is None else torch.where(counts, lengths, 1.0)).prod(dim=0)
    distance, offsets = _distances(anchors, vectors[0], directions)
    # A feature is nearest to those of its own sample: this distance gets all digits, by the residual.
    residual = _orthogonal(anchors - vectors[0], directions)
    itself = torch.eye(residual.shape[0], dtype=torch.bool, device=residual.device)
    distance = torch.where(itself, torch.linalg.vector_norm(residual, dim=1), distance)
    if has_anchor is not None:
        distance = torch.where(has_anchor[:, None], distance, 1.0)
    return distance * size, directions, lengths, size, distance, offsets, residual


def _orthonormal(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Gram-Schmidt: lengths (vectors batch), 0 for what lies in the span, and directions, 0 there."""
    lengths: list[Tensor] = []
    directions: list[Tensor] = []
    for vector in vectors.unbind(0):
        rest = _orthogonal(vector, directions)
        lengths.append(torch.linalg.vector_norm(rest, dim=1))
        directions.append(rest / torch.where(lengths[-1] > 0, lengths[-1], 1.0)[:, None])
    return torch.stack(lengths), torch.stack(directions)


def _orthogonal(vectors: Tensor, directions: list[Tensor] | Tensor) -> Tensor:
    """Take away the part along the directions; the second time takes what rounding left of it."""
    for direction in (*directions, *directions):
        vectors = torch.addcmul(vectors, (direction * vectors).sum(dim=1, keepdim=True), direction, value=-1)
    return vectors


def _distances(anchors: Tensor, base: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
    """Distance of every anchor from every span, by products of matrices, and the offsets from the base inside it."""
    centre = base.detach().mean(dim=0)  # a common offset would cost digits
    anchors, base = anchors - centre, base - centre
    start = (directions * base).sum(dim=2)
    offsets = torch.addmm(start.flatten(), anchors, directions.flatten(0, 1).T, beta=-1).unflatten(1, start.shape)
    squares = anchors.square().sum(dim=1)[:, None] + base.square().sum(dim=1)
    squares = torch.addmm(squares, anchors, base.T, alpha=-2) - offsets.square().sum(dim=1)
    inside = squares <= 0
    return torch.where(inside, 0.0, torch.where(inside, 1.0, squares).sqrt()), offsets


class ExchangedVolumes(torch.autograd.Function):
    r"""$V_{ij}$, the volume of the anchor $a_i$ and the vectors $w_{j1}, w_{j2}, \dots$ of the sample $j$.

    The readable twin is `exchanged_volumes`, which itself runs where no gradient is wanted and while a graph is
    captured. $V_{ij} = A_j d_{ij}$, with $A_j$ the volume of the $w_j$ and $d_{ij} = \lVert r_{ij} \rVert$ the distance
    of $a_i$ from their span. With $a_i - r_{ij} = \sum_k c_{ijk} w_{jk}$ and the dual vectors $w^*_{jk}$, it is

    $$\frac{\partial V_{ij}}{\partial a_i} = \frac{A_j}{d_{ij}} r_{ij} \qquad \frac{\partial V_{ij}}{\partial w_{jk}} =
    V_{ij} w^*_{jk} - c_{ijk} \frac{A_j}{d_{ij}} r_{ij}$$

    and 0 where $d_{ij}$ is 0.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        anchors: Tensor, vectors: Tensor, counts: Tensor | None, has_anchor: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return what `exchanged_volumes` does."""
        return exchanged_volumes(anchors, vectors, counts, has_anchor)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
        anchors, vectors, _, has_anchor = inputs
        ctx.save_for_backward(anchors, vectors, has_anchor, *output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor | None, *of_others: Tensor | None) -> tuple[Tensor | None, ...]:
        if any(gradient is not None for gradient in of_others):
            raise NotImplementedError(
                "gram_volume can be differentiated once; a second derivative was asked for: "
                "detach the gradient, or leave create_graph off"
            )
        if upstream is None:
            return None, None, None, None
        anchors, vectors, has_anchor, directions, lengths, size, distance, offsets, residual = ctx.saved_tensors
        of_size = (upstream * distance).sum(dim=0)
        pull = upstream * size / torch.where(distance > 0, distance, torch.inf)
        if has_anchor is not None:
            pull = torch.where(has_anchor[:, None], pull, 0.0)
        of_anchors, along = _pulled(pull, anchors, vectors[0], directions, offsets, residual)
        of_directions = torch.addcmul(-along[1:], (of_size * size)[:, None], directions)
        of_vectors = _along_vectors(of_directions, vectors, directions, lengths)
        return of_anchors, torch.stack([of_vectors[0] - along[0], *of_vectors[1:]]), None, None


def _pulled(
    pull: Tensor, anchors: Tensor, base: Tensor, directions: Tensor, offsets: Tensor, residual: Tensor
) -> tuple[Tensor, Tensor]:
    r"""Sum residuals $r_{ij} = a_i - u_j - \sum_l s_{ijl} q_{jl}$, each times `pull`.

    Returns their sum over the columns, (batch dim), and over the rows, times 1 and times each of the `offsets` $s$,
    (1 + vectors batch dim).
    """
    own = pull.diagonal()
    others = pull - torch.diag(own)  # a sample's own residual is exact, and not to be formed from large parts
    factors = torch.cat([torch.ones_like(offsets[:, :1]), offsets], dim=1)
    weights = others[:, None] * factors
    centre = base.mean(dim=0)
    anchors = anchors - centre
    parts = torch.cat([(base - centre)[None], directions])
    of_rows = others.sum(dim=1, keepdim=True) * anchors - weights.flatten(1) @ parts.flatten(0, 1)
    of_columns = (weights.flatten(1).T @ anchors).view_as(parts)
    for factor, part in zip(factors.unbind(1), parts, strict=True):
        of_columns = torch.addcmul(of_columns, (weights * factor[:, None]).sum(dim=0)[..., None], part, value=-1)
    itself = own[:, None] * residual
    own_factors = factors.diagonal(dim1=0, dim2=2)
    return of_rows + itself, torch.addcmul(of_columns, own_factors[..., None], itself)


def _along_vectors(rows: Tensor, vectors: Tensor, directions: Tensor, lengths: Tensor) -> list[Tensor]:
    """Solve for what, times the coefficients that the vectors have in the directions, gives `rows`.

    The coefficients are a lower triangle with the lengths on its diagonal, and 1 for a length of 0.
    """
    solved: list[Tensor] = []
    for k in reversed(range(len(rows))):
        row = rows[k]
        for later, found in zip(vectors[k + 1 :].flip(0), solved, strict=True):
            row = torch.addcmul(row, (later * directions[k]).sum(dim=1, keepdim=True), found, value=-1)
        solved.append(row / torch.where(lengths[k] > 0, lengths[k], 1.0)[:, None])
    return solved[::-1]
