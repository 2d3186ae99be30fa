"""Layers of STMI."""

import torch
import torch.nn.functional as F
from torch import Tensor

import stmi_layers as sl
from case import DIM, HEAD_STATE, PROJECTIONS, Case, Inputs, Source, affine


def attention_inputs(source: Source, batch: int) -> Inputs:
    tokens = source.size(1, 9)
    return source.normal(batch, tokens, DIM), source.flags(batch, tokens)


def node_inputs(source: Source, batch: int) -> Inputs:
    return source.normal(batch, 6, DIM), source.flags(batch, 6, 5)


def any_node_inputs(source: Source, batch: int) -> Inputs:
    nodes = source.size(1, 6)
    return source.normal(batch, nodes, DIM), source.normal(batch, nodes, source.size(1, 6)).abs()


def modality_inputs(source: Source, batch: int) -> Inputs:
    modalities = source.size(1, 3)
    present = source.flags(batch, modalities)
    present[:, source.size(0, modalities - 1)] = True  # a sample has at least one
    return source.normal(batch, modalities, 6 // modalities, DIM), present


def readout_inputs(source: Source, batch: int) -> Inputs:
    nodes = source.size(1, 9)
    return source.normal(batch, source.size(1, 4), DIM), source.normal(batch, nodes, DIM), source.flags(batch, nodes)


def labelled_features(source: Source, batch: int) -> Inputs:
    return source.normal(batch, DIM), torch.arange(batch) % 3


def reid_loss(loss: sl.ReIDLoss, features: Tensor, labels: Tensor) -> Tensor:
    identity = F.cross_entropy(loss.head(features).float(), labels, label_smoothing=loss.smoothing)
    return identity + 2 * sl.batch_hard_triplet(features, labels, margin=loss.margin)


CASES = {
    "MaskPerturbation": Case(
        build=lambda device, dtype: sl.MaskPerturbation(0.5),
        inputs=lambda source, batch: (source.flags(batch, source.size(1, 9)),),
        shape=lambda foreground: foreground.shape,
        twin=lambda _, foreground: foreground,
        random=True,
    ),
    "SegmentationModulatedAttention": Case(
        build=lambda device, dtype: sl.SegmentationModulatedAttention(
            DIM, 2, per_head=True, perturbation=0.3, device=device, dtype=dtype
        ),
        inputs=attention_inputs,
        shape=lambda tokens, _: tokens.shape,
        state=(*PROJECTIONS, "alpha", "beta"),
        width="tokens must have width dim=8",
        random=True,
    ),
    "SemanticTokenReallocation": Case(
        build=lambda device, dtype: sl.SemanticTokenReallocation(DIM, 3, num_heads=2, device=device, dtype=dtype),
        inputs=lambda source, batch: (source.normal(batch, source.size(1, 9), DIM), source.normal(batch, DIM)),
        shape=lambda patches, _: (len(patches), 4, DIM),
        state=("queries", *PROJECTIONS, *affine("norm_queries", "norm_patches", "norm_ffn", "ffn.0", "ffn.2")),
        width="patches must have width dim=8",
    ),
    "HypergraphConv": Case(
        build=lambda device, dtype: sl.HypergraphConv(
            DIM, 5, num_edges=5, num_nodes=6, normalization="none", device=device, dtype=dtype
        ),
        inputs=node_inputs,
        shape=lambda nodes, _: (len(nodes), 6, 5),
        state=("linear.weight", "edge_weight", "node_bias"),
        twin=lambda conv, nodes, incidence: F.silu(
            sl.hypergraph_conv(conv.linear(nodes), incidence, conv.edge_weight, normalization="none") + conv.node_bias
        ),
        width="nodes must have width in_dim=8",
    ),
    "HypergraphConv of any size": Case(
        build=lambda device, dtype: sl.HypergraphConv(DIM, DIM, normalization="symmetric", device=device, dtype=dtype),
        inputs=any_node_inputs,
        shape=lambda nodes, _: nodes.shape,
        state=("linear.weight",),
        twin=lambda conv, nodes, incidence: F.silu(
            sl.hypergraph_conv(conv.linear(nodes), incidence, normalization="symmetric")
        ),
        width="nodes must have width in_dim=8",
    ),
    "HypergraphConv with another activation": Case(
        build=lambda device, dtype: sl.HypergraphConv(DIM, DIM, activation=F.relu, device=device, dtype=dtype),
        inputs=any_node_inputs,
        shape=lambda nodes, _: nodes.shape,
        state=("linear.weight",),
        twin=lambda conv, nodes, incidence: F.relu(sl.hypergraph_conv(conv.linear(nodes), incidence)),
        width="nodes must have width in_dim=8",
    ),
    "CrossModalHypergraph": Case(
        build=lambda device, dtype: sl.CrossModalHypergraph(
            DIM, 6, num_layers=2, threshold=0.2, device=device, dtype=dtype
        ),
        inputs=modality_inputs,
        shape=lambda tokens, _: tokens.shape,
        state=tuple(
            f"layers.{layer}.{name}" for layer in (0, 1) for name in ("linear.weight", "edge_weight", "node_bias")
        ),
        width="tokens must have width dim=8",
    ),
    "GlobalCrossAttention": Case(
        build=lambda device, dtype: sl.GlobalCrossAttention(DIM, num_heads=2, dropout=0.3, device=device, dtype=dtype),
        inputs=readout_inputs,
        shape=lambda tokens, *_: tokens.shape,
        state=(*PROJECTIONS, *affine("norm_globals", "norm_tokens")),
        width="globals must have width dim=8",
        random=True,
    ),
    "GlobalCrossAttention without norms": Case(
        build=lambda device, dtype: sl.GlobalCrossAttention(DIM, num_heads=1, norm=False, device=device, dtype=dtype),
        inputs=readout_inputs,
        shape=lambda tokens, *_: tokens.shape,
        state=PROJECTIONS,
        twin=lambda layer, globals_, tokens, keep: (
            sl.absorbed_cross_attention(
                globals_,
                tokens,
                layer.in_proj_weight,
                layer.in_proj_bias,
                layer.out_proj.weight,
                layer.out_proj.bias,
                1,
                keep=keep,
            )
            + globals_
        ),
        width="globals must have width dim=8",
    ),
    "IdentityHead": Case(
        build=lambda device, dtype: sl.IdentityHead(DIM, 5, device=device, dtype=dtype),
        inputs=lambda source, batch: (source.normal(batch, DIM),),
        shape=lambda features: (len(features), 5),
        state=(*HEAD_STATE, "classifier.weight"),
        twin=lambda head, features: head.classifier(
            F.batch_norm(features, head.norm.running_mean, head.norm.running_var, head.norm.weight, eps=head.norm.eps)
        ),
        width="features must have width dim=8",
    ),
    "ReIDLoss": Case(
        build=lambda device, dtype: sl.ReIDLoss(DIM, 5, margin=0.3, triplet_weight=2.0, device=device, dtype=dtype),
        inputs=labelled_features,
        shape=lambda *_: (),
        state=tuple(f"head.{name}" for name in (*HEAD_STATE, "classifier.weight")),
        twin=reid_loss,
        width="features must have width dim=8",
        per_sample=False,
        half_result=torch.float32,
    ),
}
