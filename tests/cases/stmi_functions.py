"""Functions of STMI's layers, losses and metrics."""

import torch
from torch import Tensor

import stmi_layers as sl
from case import DIM, FunctionCase, Inputs, Source


def heads(source: Source, batch: int) -> Inputs:
    tokens = source.size(2, 9)
    vectors = tuple(source.normal(batch, 2, tokens, 4) for _ in range(3))
    return (*vectors, source.flags(batch, tokens), torch.tensor([0.1, 0.4]), torch.tensor([0.3]))


def logits(source: Source, batch: int) -> Inputs:
    tokens = source.size(2, 9)
    strengths = torch.tensor([0.1, 0.4]), torch.tensor([0.3])
    return (source.normal(batch, 2, tokens, tokens), source.flags(batch, tokens), *strengths)


def cross_attention(source: Source, batch: int) -> Inputs:
    keep = source.flags(batch, 6)
    keep[:, 0] = True
    vectors = source.normal(batch, source.size(1, 4), DIM), source.normal(batch, 6, DIM)
    weights = source.normal(3 * DIM, DIM) / DIM, source.normal(3 * DIM), source.normal(DIM, DIM), source.normal(DIM)
    return (*vectors, *weights, keep)


def read(query: Tensor, context: Tensor, weight: Tensor, bias: Tensor, out: Tensor, out_bias: Tensor, keep: Tensor):
    return sl.absorbed_cross_attention(query, context, weight, bias, out, out_bias, 2, keep=keep)


def nodes(source: Source, batch: int) -> Inputs:
    count = source.size(1, 6)
    return source.normal(batch, count, DIM), source.flags(batch, count, count)


def labelled(source: Source, batch: int) -> Inputs:
    return source.normal(batch, DIM), torch.arange(batch) % 2


def retrieval(source: Source, batch: int) -> Inputs:
    return source.normal(batch, DIM), source.normal(9, DIM), torch.arange(batch) % 3, torch.arange(9) % 3


def average_precision(*inputs: Tensor) -> Tensor:
    return sl.reid_metrics(*inputs).average_precision


FUNCTIONS = {
    "modulate_logits": FunctionCase(sl.modulate_logits, logits, shared=(2, 3)),
    "modulated_attention": FunctionCase(sl.modulated_attention, heads, shared=(4, 5)),
    "token_foreground": FunctionCase(
        lambda mask: sl.token_foreground(mask, (2, 2)),
        lambda source, batch: (source.flags(batch, 8, 6),),
        smooth=False,
    ),
    "perturb_background": FunctionCase(
        lambda foreground: sl.perturb_background(foreground, 0.0),
        lambda source, batch: (source.flags(batch, 9),),
        graph=False,  # randomness under vmap has to be allowed by its caller
        smooth=False,
    ),
    "similarity_incidence": FunctionCase(
        lambda nodes, present: sl.similarity_incidence(nodes, 0.2, present=present),
        lambda source, batch: (source.normal(batch, 6, DIM), source.flags(batch, 6)),
        smooth=False,
        dtype=torch.bool,
    ),
    "incidence_statistics": FunctionCase(
        lambda incidence: torch.stack(sl.incidence_statistics(incidence, 2), dim=1),
        lambda source, batch: (source.flags(batch, 6, 6),),
        smooth=False,
        dtype=torch.float32,
    ),
    "hypergraph_conv": FunctionCase(sl.hypergraph_conv, nodes),
    "absorbed_cross_attention": FunctionCase(read, cross_attention, shared=(2, 3, 4, 5)),
    "batch_hard_triplet": FunctionCase(sl.batch_hard_triplet, labelled, per_sample=False, dtype=torch.float32),
    "reid_metrics": FunctionCase(
        average_precision, retrieval, shared=(1, 3), empty=False, graph=False, smooth=False, dtype=torch.float64
    ),
    "rank_gallery": FunctionCase(
        sl.rank_gallery, retrieval, shared=(1, 3), graph=False, smooth=False, dtype=torch.int64
    ),
    "nearest": FunctionCase(
        lambda query, gallery, *_: sl.nearest(query, gallery, 4)[1],
        retrieval,
        shared=(1, 3),
        graph=False,
        smooth=False,
        dtype=torch.float32,
    ),
    "k_reciprocal_rerank": FunctionCase(
        lambda query, gallery, *_: sl.k_reciprocal_rerank(query, gallery, k1=3, k2=2),
        retrieval,
        shared=(1, 3),
        empty=False,
        graph=False,
        smooth=False,
        per_sample=False,
        dtype=torch.float32,
    ),
    "reranked_metrics": FunctionCase(
        lambda *inputs: sl.reranked_metrics(*inputs, k1=3, k2=2).average_precision,
        retrieval,
        shared=(1, 3),
        empty=False,
        graph=False,
        smooth=False,
        per_sample=False,
        dtype=torch.float64,
    ),
}
