"""References of the layers: the paper's equations as slow float64 loops over single numbers.

Nothing here is shared with the library, and nothing is clever. Every function is differentiable.
"""

import math

import torch
from torch import Tensor


def softmax(row: list[Tensor]) -> list[Tensor]:
    highest = max(value.item() for value in row)
    powers = [(value - highest).exp() for value in row]
    return [power / sum(powers) for power in powers]


def modulated_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    foreground: Tensor,
    alpha: Tensor,
    beta: Tensor,
    scale: float | None = None,
) -> Tensor:
    """Eq. 3-8, one logit at a time; `alpha` and `beta` hold one entry, or one per head."""
    batch, heads, tokens, head_dim = query.shape
    scale = 1 / math.sqrt(head_dim) if scale is None else scale
    output = torch.zeros(batch, heads, tokens, head_dim, dtype=torch.float64)
    for b in range(batch):
        for h in range(heads):
            strength_up, strength_down = alpha[h % len(alpha)], beta[h % len(beta)]
            for i in range(tokens):
                logits = [(query[b, h, i] * key[b, h, j]).sum() for j in range(tokens)]
                highest, lowest = torch.stack(logits).amax(), torch.stack(logits).amin()
                modulated = []
                for j, logit in enumerate(logits):
                    both = 1.0 if foreground[b, i] and foreground[b, j] else 0.0
                    change = strength_up * both * (highest - logit) - strength_down * (1 - both) * (logit - lowest)
                    modulated.append((logit + change) * scale)
                for j, weight in enumerate(softmax(modulated)):
                    output[b, h, i] = output[b, h, i] + weight * value[b, h, j]
    return output


def token_foreground(mask: Tensor, grid: tuple[int, int], threshold: float, prefix_tokens: int) -> Tensor:
    """Eq. 2 with the area of every patch measured pixel by pixel."""
    batch, height, width = mask.shape
    rows, columns = grid
    result = torch.ones(batch, prefix_tokens + rows * columns, dtype=torch.bool)
    for b in range(batch):
        for r in range(rows):
            for c in range(columns):
                area = 0.0
                for y in range(height):
                    for x in range(width):
                        down = min((r + 1) * height, (y + 1) * rows) - max(r * height, y * rows)
                        across = min((c + 1) * width, (x + 1) * columns) - max(c * width, x * columns)
                        area += float(mask[b, y, x]) * max(down, 0) * max(across, 0)
                result[b, prefix_tokens + r * columns + c] = area >= threshold * height * width
    return result


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float | None = None) -> Tensor:
    """The triplet loss of eq. 19 from all distances, anchor by anchor."""
    losses = []
    for a in range(len(labels)):
        positives, negatives = [], []
        for b in range(len(labels)):
            if a != b:
                distance = ((features[a] - features[b]) ** 2).sum().sqrt()
                (positives if labels[a] == labels[b] else negatives).append(distance)
        if positives and negatives:
            gap = torch.stack(positives).amax() - torch.stack(negatives).amin()
            losses.append((1 + gap.exp()).log() if margin is None else (gap + margin).clamp(min=0))
    return torch.stack(losses).mean() if losses else 0.0 * features.sum()


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The identity loss of eq. 19: the target has `1 - smoothing` more than an even share of `smoothing`."""
    losses = []
    for b in range(len(labels)):
        loss = torch.zeros((), dtype=torch.float64)
        for c, probability in enumerate(softmax(list(logits[b]))):
            target = smoothing / logits.shape[1] + (1 - smoothing if c == labels[b] else 0.0)
            loss = loss - target * probability.log()
        losses.append(loss)
    return torch.stack(losses).mean()


def batch_norm(features: Tensor, scale: Tensor, eps: float = 1e-5) -> Tensor:
    """Columns with mean 0 and variance `scale ** 2`, the variance being that of the batch."""
    columns = []
    for c in range(features.shape[1]):
        mean = sum(features[:, c]) / len(features)
        variance = sum((value - mean) ** 2 for value in features[:, c]) / len(features)
        columns.append((features[:, c] - mean) / (variance + eps).sqrt() * scale[c])
    return torch.stack(columns, dim=1)


def ranked_gallery(
    query: Tensor,
    gallery: Tensor,
    query_ids: Tensor,
    gallery_ids: Tensor,
    query_groups: Tensor | None = None,
    gallery_groups: Tensor | None = None,
    metric: str = "euclidean",
) -> list[list[int]]:
    """For every query the allowed gallery entries, nearest first and by index at equal distance."""
    rankings = []
    for q in range(len(query)):
        candidates = []
        for g in range(len(gallery)):
            same_group = query_groups is not None and query_groups[q] == gallery_groups[g]
            if query_ids[q] == gallery_ids[g] and same_group:
                continue
            if metric == "cosine":
                lengths = (query[q] ** 2).sum().sqrt() * (gallery[g] ** 2).sum().sqrt()
                distance = 1 - (query[q] * gallery[g]).sum() / lengths
            else:
                distance = ((query[q] - gallery[g]) ** 2).sum()
            candidates.append((distance.item(), g))
        rankings.append([g for _, g in sorted(candidates)])
    return rankings


def ranking_scores(ranking: list[int], query_id: int, gallery_ids: Tensor) -> tuple[float, int, float] | None:
    """Average precision, rank of the first positive, inverse negative penalty; None without a positive."""
    hits, precisions, ranks = 0, [], []
    for rank, g in enumerate(ranking, start=1):
        if gallery_ids[g] == query_id:
            hits += 1
            precisions.append(hits / rank)
            ranks.append(rank)
    return (sum(precisions) / hits, ranks[0], hits / ranks[-1]) if hits else None


def cross_attention(
    query: Tensor,
    context: Tensor,
    in_proj_weight: Tensor,
    in_proj_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    num_heads: int,
    keep: Tensor | None = None,
) -> Tensor:
    """CrossAttn of eq. 12 and 18 with keys and values projected token by token; 0 where no token is kept."""
    dim, width = query.shape[-1], query.shape[-1] // num_heads
    weights, biases = in_proj_weight.split(dim), in_proj_bias.split(dim)
    output = 0 * query
    for b in range(len(query)):
        kept = [n for n in range(context.shape[1]) if keep is None or keep[b, n]]
        keys = [weights[1] @ context[b, n] + biases[1] for n in kept]
        values = [weights[2] @ context[b, n] + biases[2] for n in kept]
        for q in range(query.shape[1] if kept else 0):
            asking = weights[0] @ query[b, q] + biases[0]
            heads = []
            for h in range(num_heads):
                part = slice(h * width, (h + 1) * width)
                shares = softmax([(asking[part] * key[part]).sum() / math.sqrt(width) for key in keys])
                parts = [share * value[part] for share, value in zip(shares, values, strict=True)]
                heads.append(torch.stack(parts).sum(dim=0))
            output[b, q] = out_weight @ torch.cat(heads) + out_bias
    return output


def layer_norm(vector: Tensor, scale: Tensor, shift: Tensor, eps: float = 1e-5) -> Tensor:
    mean = vector.sum() / len(vector)
    variance = ((vector - mean) ** 2).sum() / len(vector)
    return (vector - mean) / (variance + eps).sqrt() * scale + shift


def semantic_tokens(patches: Tensor, prior: Tensor | None, state: dict[str, Tensor], num_heads: int) -> Tensor:
    """Eq. 11-13, normalised first, from the state dict of the layer."""
    attention = (state["in_proj_weight"], state["in_proj_bias"], state["out_proj.weight"], state["out_proj.bias"])
    samples = []
    for b in range(len(patches)):
        queries = [*state["queries"], *([] if prior is None else [prior[b]])]
        asking = [layer_norm(query, state["norm_queries.weight"], state["norm_queries.bias"]) for query in queries]
        asked = [layer_norm(patch, state["norm_patches.weight"], state["norm_patches.bias"]) for patch in patches[b]]
        read = cross_attention(torch.stack(asking)[None], torch.stack(asked)[None], *attention, num_heads)[0]
        for query, answer in zip(queries, read, strict=True):
            token = answer + query
            inner = state["ffn.0.weight"] @ layer_norm(token, state["norm_ffn.weight"], state["norm_ffn.bias"])
            inner = inner + state["ffn.0.bias"]
            inner = inner * (1 + torch.erf(inner / math.sqrt(2))) / 2
            samples.append(state["ffn.2.weight"] @ inner + state["ffn.2.bias"] + token)
    return torch.stack(samples).reshape(len(patches), -1, patches.shape[-1])


def similarity_incidence(nodes: Tensor, threshold: float, similarity: str, present: Tensor) -> Tensor:
    """Which nodes share the hyperedge of each node, pair by pair."""
    batch, count, _ = nodes.shape
    incidence = torch.zeros(batch, count, count, dtype=torch.bool)
    for b in range(batch):
        for i in range(count):
            for j in range(count):
                first, second = nodes[b, i], nodes[b, j]
                if similarity == "cosine":
                    lengths = (first**2).sum().sqrt() * (second**2).sum().sqrt()
                    similar = (first * second).sum() / lengths >= threshold if lengths > 0 else threshold <= 0
                else:
                    similar = ((first - second) ** 2).sum().sqrt() <= threshold
                incidence[b, i, j] = bool(present[b, i] and present[b, j] and (i == j or similar))
    return incidence


def hypergraph_conv(nodes: Tensor, incidence: Tensor, edge_weight: Tensor, normalization: str) -> Tensor:
    """The sum of eq. 15: every hyperedge takes the mean of its nodes, every node collects from its hyperedges."""
    batch, count, edges = incidence.shape
    collecting, scattering = {"row": (0, 1), "symmetric": (0.5, 0.5), "none": (0, 0)}[normalization]
    output = 0 * nodes
    for b in range(batch):
        members, degrees = incidence[b].double(), incidence[b].double().sum(dim=1)
        for e in range(edges):
            inside = [i for i in range(count) if members[i, e] > 0]
            if inside:
                size = torch.stack([members[i, e] for i in inside]).sum()
                scaled = [members[i, e] * nodes[b, i] / degrees[i] ** collecting for i in inside]
                feature = torch.stack(scaled).sum(dim=0) / size
                for i in inside:
                    received = members[i, e] * edge_weight[e] * feature / degrees[i] ** scattering
                    output[b, i] = output[b, i] + received
    return output


def cross_modal_hypergraph(
    tokens: Tensor, present: Tensor, state: dict[str, Tensor], num_layers: int, threshold: float
) -> Tensor:
    """Eq. 14-16 with the cosine and means, on the present tokens of every sample alone."""
    result = tokens.clone()
    batch, modalities, count, _ = tokens.shape
    for b in range(batch):
        places = [(m, t) for m in range(modalities) for t in range(count) if present[b, m]]
        if not places:
            continue
        index = [m * count + t for m, t in places]
        nodes = torch.stack([tokens[b, m, t] for m, t in places])
        incidence = similarity_incidence(nodes[None], threshold, "cosine", torch.ones(1, len(places)))
        for layer in range(num_layers):
            names = ("linear.weight", "edge_weight", "node_bias")
            linear, edge_weight, bias = (state[f"layers.{layer}.{name}"] for name in names)
            mapped = torch.stack([linear @ node for node in nodes])[None]
            received = hypergraph_conv(mapped, incidence, edge_weight[index], "row")[0] + bias[index]
            nodes = received / (1 + (-received).exp()) + nodes
        for (m, t), node in zip(places, nodes, strict=True):
            result[b, m, t] = node
    return result
