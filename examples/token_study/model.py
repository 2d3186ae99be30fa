"""STMI with changes to its tower, queries or hyperedges, which measures its tokens.

Every change might let semantic tokens tell images apart. `watch` reports its effect, by the numbers of
`examples.stmi.tokens` on the first batch of an evaluation.
"""

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from examples.stmi.model import STMI
from examples.stmi.model import build as build_stmi
from examples.stmi.tokens import measure
from examples.token_study.settings import Settings
from examples.towers.tower import Tower
from stmi_layers import CrossModalHypergraph, SemanticTokenReallocation, similarity_incidence
from stmi_layers.cross_attention import absorbed_cross_attention
from stmi_layers.training import Batch, Facts, Outputs

# Share of a new batch in running statistics. Tokens vary so little that the usual 0.1 would lag behind the mean.
MOMENTUM = 0.5


def build(settings: Settings, facts: Facts, tower: Tower) -> "StudiedSTMI":
    """Build the model of the settings, with random weights."""
    model = build_stmi(settings, facts, tower, StudiedSTMI)
    assert isinstance(model, StudiedSTMI)
    model.change(settings)
    return model


class StudiedSTMI(STMI):
    """STMI with the changes of the settings."""

    def change(self, settings: Settings) -> None:
        """Replace the usual parts by the changed parts; call this method once."""
        tower, dim = self.backbone, self.backbone.dim
        if settings.residual_scale is not None:
            for block in tower.blocks:
                block.attention = Scaled(block.attention, dim, settings.residual_scale)
                block.mlp = Scaled(block.mlp, dim, settings.residual_scale)
        if settings.tower_norm == "batch":
            tower.norm = TokenBatchNorm(dim)
        self.patch_norm = TokenBatchNorm(dim, affine=False) if settings.patch_norm else None
        widths = self.widths if settings.feature_norm else {}
        self.feature_norms = nn.ModuleDict(
            {name: TokenBatchNorm(width, affine=False) for name, width in widths.items()}
        )
        self.diversity, self.found = settings.diversity, {}
        if self.reallocations is not None:
            first = StudiedReallocation(settings, self.reallocations[0])
            self.reallocations = nn.ModuleList(copy.deepcopy(first) for _ in self.reallocations)
        if isinstance(self.interaction, CrossModalHypergraph):
            self.interaction = StudiedHypergraph(settings, self.interaction)

    def forward(self, batch: Batch) -> Outputs:
        """Return the outputs of STMI with the diversity term; measure tokens in the first batch of an evaluation."""
        if self._look and not self.training and self.reallocations is not None:
            self.found = as_numbers(measure(self, [batch]))
        self.terms: dict[str, Tensor] = {}
        outputs = super().forward(batch)
        normed = {name: norm(outputs.features[name]) for name, norm in self.feature_norms.items()}
        return outputs._replace(features=outputs.features | normed, terms=self.terms)

    def semantic_tokens(self, patches: Tensor, prior: Tensor | None) -> Tensor:
        """Apply STR to the patches, or to normed patches."""
        tokens = super().semantic_tokens(patches if self.patch_norm is None else self.patch_norm(patches), prior)
        if self.training and self.diversity != "none":
            compared = tokens - tokens.mean(0) if self.diversity == "deviations" else tokens
            self.terms = {"diversity": shared_direction(compared)}
        return tokens

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the groups of STMI, with "heads" for STR, CHI and the readout, without classifiers of the loss."""
        groups = super().parameter_groups()
        return {"new": [], "heads": groups.pop("new"), **groups}

    def watch(self) -> dict[str, float]:
        """Return the numbers of STMI, and the measured tokens of the last evaluation."""
        return super().watch() | self.found


def as_numbers(found: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of `measure` that a table of the study shows, by name."""
    varies = {f"varies/{name}": value for name, value in found["varies"].items()}
    return {**varies, "entropy": found["entropy"], "read": found["read"]}


def shared_direction(tokens: Tensor) -> Tensor:
    """Return the mean squared cosine of two tokens of one modality, for tokens (batch modalities semantic dim)."""
    unit = F.normalize(tokens, dim=-1)
    squared = (unit @ unit.mT).square()  # (b m k k)
    count = tokens.shape[2]
    return (squared.sum(dim=(2, 3)) - squared.diagonal(dim1=2, dim2=3).sum(-1)).mean() / max(1, count * (count - 1))


class Scaled(nn.Module):
    """A module with a learned scale per channel of its result."""

    def __init__(self, inner: nn.Module, dim: int, scale: float) -> None:
        super().__init__()
        self.inner, self.scale = inner, nn.Parameter(torch.full((dim,), scale))

    def forward(self, *inputs: Any) -> Tensor:
        """Return the result of the module, scaled."""
        return self.inner(*inputs) * self.scale


class TokenBatchNorm(nn.BatchNorm1d):
    """Batch norm over all tokens of all images."""

    def __init__(self, dim: int, *, affine: bool = True) -> None:
        super().__init__(dim, momentum=MOMENTUM, affine=affine)

    def forward(self, input: Tensor) -> Tensor:
        """Normalise tokens (... dim) per channel."""
        return super().forward(input.flatten(0, -2)).view_as(input)


class StudiedReallocation(SemanticTokenReallocation):
    """STR with another scale of queries, or another part of the query in its token; copies the weights of `like`."""

    def __init__(self, settings: Settings, like: Any) -> None:
        super().__init__(like.dim, like.num_tokens, num_heads=like.num_heads, mlp_ratio=like.mlp_ratio)
        self.load_state_dict(like.state_dict())
        self.query_in_token = settings.query_in_token
        with torch.no_grad():
            self.queries *= settings.query_scale

    def forward(self, patches: Tensor, prior: Tensor | None = None) -> Tensor:
        """Read the patches."""
        if self.query_in_token == "added":
            return super().forward(patches, prior)
        queries, out = self._queries(patches, prior), self.out_proj
        weights = (self.in_proj_weight, self.in_proj_bias, out.weight, out.bias, self.num_heads)
        tokens = absorbed_cross_attention(self.norm_queries(queries), self.norm_patches(patches), *weights)
        if self.query_in_token == "normed":
            tokens = tokens + F.layer_norm(queries, queries.shape[-1:])
        return self.ffn(self.norm_ffn(tokens)) + tokens


class StudiedHypergraph(CrossModalHypergraph):
    """CHI whose hyperedges come from normed tokens, or from a threshold that follows the batch."""

    def __init__(self, settings: Settings, like: CrossModalHypergraph) -> None:
        super().__init__(like.dim, like.num_nodes, threshold=like.threshold, similarity=like.similarity)
        self.load_state_dict(like.state_dict())
        # Each node separately: a mean over nodes would keep the differences between the queries.
        self.norm = TokenBatchNorm(like.num_nodes * like.dim, affine=False) if settings.edges_by == "normed" else None
        self.by_median = settings.median_threshold
        self.register_buffer("median", torch.zeros(()))

    def incidence(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        """Compute the hyperedges of the tokens; in training by the statistics of the batch."""
        compared = tokens.detach()
        if self.norm is not None:
            compared = self.norm(compared.flatten(1)).view_as(tokens)
        if not self.by_median:
            return super().incidence(compared, present)
        if present is not None:
            raise ValueError("median_threshold needs all modalities; received items that lack some")
        nodes = compared.flatten(1, 2)
        if self.training:
            self.median = median_cosine(nodes)
        return similarity_incidence(nodes, float(self.median))


def median_cosine(nodes: Tensor) -> Tensor:
    """Return the median cosine of two nodes of one sample, over all samples (batch nodes dim)."""
    unit = F.normalize(nodes, dim=-1)
    count = nodes.shape[1]
    return (unit @ unit.mT)[:, ~torch.eye(count, dtype=torch.bool, device=nodes.device)].median()
