"""Alignment losses, mask losses and guided attention as float64 loops over single numbers."""

import torch
from torch import Tensor

from . import softmax


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum().sqrt() * (b * b).sum().sqrt())


def one_way(rows: Tensor, columns: Tensor, right: list[list[int]], temperature: Tensor | float) -> list[Tensor]:
    """Cross-entropy of each row whose list of right columns is not empty."""
    losses = []
    for row, positives in zip(rows, right, strict=True):
        if positives:
            shares = softmax([cosine(row, column) / temperature for column in columns])
            losses.append(-sum(shares[p].log() for p in positives) / len(positives))
    return losses


def image_text_alignment(
    image: Tensor, text: Tensor, labels: list[int], temperature: Tensor | float, present: list[bool]
) -> Tensor:
    kept = [i for i in range(len(image)) if present[i]]
    right = [[kept.index(j) for j in kept if labels[i] == labels[j]] for i in kept]
    both = one_way(image[kept], text[kept], right, temperature), one_way(text[kept], image[kept], right, temperature)
    return torch.stack([torch.stack(losses).mean() for losses in both]).mean()


def token_identity(
    queries: Tensor, targets: Tensor, of_queries: list[int], of_targets: list[int], temperature: float, present: Tensor
) -> Tensor:
    losses = []
    for k in range(queries.shape[1]):
        right = [
            [j for j, other in enumerate(of_targets) if other == label] if present[i, k] else []
            for i, label in enumerate(of_queries)
        ]
        losses += one_way(queries[:, k], targets[:, k], right, temperature)
    return torch.stack(losses).mean() if losses else 0.0 * queries.sum()


def mask_loss(logits: Tensor, mask: Tensor, bce_weight: float, dice_weight: float, smoothing: float) -> Tensor:
    losses = []
    for image, target in zip(logits.flatten(1), mask.flatten(1), strict=True):
        bce, overlap, size = torch.zeros(3, dtype=torch.float64)
        for logit, m in zip(image, target.double(), strict=True):
            p = 1 / (1 + (-logit).exp())
            bce = bce - m * p.log() - (1 - m) * (1 - p).log()
            overlap, size = overlap + p * m, size + p + m
        dice = 1 - (2 * overlap + smoothing) / (size + smoothing)
        losses.append(bce_weight * bce / image.numel() + dice_weight * dice)
    return torch.stack(losses).mean()


def mask_coupling(tokens: Tensor, patches: Tensor, mask: Tensor) -> Tensor:
    losses = []
    for b in range(len(tokens)):
        if mask[b].sum() > 0:
            mean = sum(mask[b, n].double() * patches[b, n] for n in range(len(mask[b]))) / mask[b].double().sum()
            losses.append(sum(1 - cosine(token, mean) for token in tokens[b]) / len(tokens[b]))
    return torch.stack(losses).mean() if losses else 0.0 * tokens.sum()


def guided_attention(
    queries: Tensor,
    patches: Tensor,
    mask: Tensor | None,
    present: Tensor | None,
    grid: tuple[int, int],
    scales: tuple[int, ...],
    heads: int,
    state: dict[str, Tensor],
    delta: float = 1e-4,
) -> Tensor:
    """Keys, values and the logarithm of the share of foreground, cell by cell."""
    dim, width = queries.shape[-1], queries.shape[-1] // heads
    weights, biases = state["in_proj_weight"].split(dim), state["in_proj_bias"].split(dim)
    rows = []
    for b in range(len(queries)):
        cells, shares = [], []
        for m in range(patches.shape[1]):
            if present is not None and not present[b, m]:
                continue
            for scale in scales:
                for top in range(0, grid[0], scale):
                    for left in range(0, grid[1], scale):
                        total, weight, foreground = torch.zeros(dim, dtype=torch.float64), 0.0, 0.0
                        for y in range(top, top + scale):
                            for x in range(left, left + scale):
                                n = y * grid[1] + x
                                w = 1.0 if mask is None else mask[b, m, n].double()
                                total = total + (w + delta) * patches[b, m, n]
                                weight, foreground = weight + w + delta, foreground + w / scale**2
                        cells.append(total / weight)
                        shares.append(torch.as_tensor(foreground, dtype=torch.float64) + delta)
        for query in queries[b]:
            if not cells:
                rows.append(query)
                continue
            asking, read = weights[0] @ query + biases[0], []
            for h in range(heads):
                part = slice(h * width, (h + 1) * width)
                keys = [(weights[1] @ cell + biases[1])[part] for cell in cells]
                values = [(weights[2] @ cell + biases[2])[part] for cell in cells]
                beta = state["log_beta"][h].exp()
                pairs = zip(keys, shares, strict=True)
                logits = [(asking[part] * key).sum() / width**0.5 + beta * share.log() for key, share in pairs]
                read.append(sum(a * value for a, value in zip(softmax(logits), values, strict=True)))
            rows.append(query + state["out_proj.weight"] @ torch.cat(read) + state["out_proj.bias"])
    return torch.stack(rows).reshape(queries.shape)
