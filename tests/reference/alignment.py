"""Alignment of Signal as loops (eq. 19-26): reference of volume, alignment and local alignment."""

import torch
from torch import Tensor


def volume(vectors: list[Tensor]) -> Tensor:
    """Eq. 20-21 from the definition: the square root of the determinant of the Gram matrix."""
    gram = torch.stack([torch.stack([one @ other for other in vectors]) for one in vectors])
    return torch.linalg.det(gram).clamp(min=0).sqrt()


def volumes(features: Tensor, anchor: int, present: Tensor) -> Tensor:
    batch, modalities, _ = features.shape
    rows = []
    for i in range(batch):
        row = []
        for j in range(batch):
            vectors = [features[i, anchor]] if present[i, anchor] else []
            vectors += [features[j, m] for m in range(modalities) if m != anchor and present[j, m]]
            row.append(volume(vectors) if vectors else 1 + 0 * features.sum())
        rows.append(torch.stack(row))
    return torch.stack(rows)


def unit(vector: Tensor) -> Tensor:
    return vector / (vector @ vector).sqrt()


def gram_alignment_loss(
    features: Tensor,
    temperature: Tensor,
    anchors: list[int],
    present: Tensor,
    labels: Tensor,
    smoothing: float,
    equalise: bool,
) -> Tensor:
    """Eq. 22 over the samples that can take part."""
    batch, modalities, _ = features.shape
    features = torch.stack([torch.stack([unit(vector) for vector in sample]) for sample in features])
    losses = []
    for anchor in anchors:
        volume = volumes(features, anchor, present)
        others = [int(present[j].sum()) - int(present[j, anchor]) for j in range(batch)]
        if equalise:
            columns = [volume[:, j] ** ((modalities - 1) / max(others[j], 1)) for j in range(batch)]
            volume = torch.stack(columns, dim=1)
        complete = [k for k in range(batch) if present[k, anchor] and others[k]]
        if not complete:
            continue
        loss = features.new_zeros(())
        for transposed in (False, True):
            for k in complete:
                usable = [j for j in range(batch) if (present[j, anchor] if transposed else others[j])]
                usable = [j for j in usable if j == k or labels[j] != labels[k]]
                logits = [-(volume[j, k] if transposed else volume[k, j]) / temperature for j in usable]
                logarithms = torch.stack(logits) - torch.stack(logits).logsumexp(dim=0)
                own = (1 - smoothing) * logarithms[usable.index(k)] + smoothing * logarithms.sum() / len(usable)
                loss = loss - own / 2 / len(complete)
        losses.append(loss)
    return sum(losses, start=0 * features.sum()) / max(len(losses), 1)


def local_alignment_loss(samples: Tensor, present: Tensor) -> Tensor:
    """Eq. 26 over the pairs that are there."""
    pairs = [
        ((samples[b, m] - samples[b, n]) ** 2).mean()
        for b in range(len(samples))
        for n in range(samples.shape[1])
        for m in range(n)
        if present[b, m] and present[b, n]
    ]
    return sum(pairs, start=0 * samples[present].sum()) / max(len(pairs), 1)
