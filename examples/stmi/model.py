"""STMI: a tower with SFM, then STR, CHI and the global readout, read from top to bottom.

The tower modulates its attention by the masks (SFM, eq. 2-8). STR gathers a few semantic tokens per modality
(eq. 9-13), CHI joins the tokens of all modalities by a hypergraph (eq. 14-16), and the global tokens read the semantic
tokens (eq. 17-18). The loss (eq. 19-20) is `Objective` in `stmi_layers.training`: identity and triplet losses on G, U
and T.
"""

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from examples.stmi.ablations import SelfAttentionInteraction, TokenMixing
from examples.stmi.settings import Fusion, Settings
from examples.towers.clip_text import build_clip_text
from examples.towers.text import CaptionEncoder
from examples.towers.tower import Tower, build_tower, tower_tokens, trunk_of, watch_strengths
from stmi_layers import CrossModalHypergraph, GlobalCrossAttention, SemanticTokenReallocation, incidence_statistics
from stmi_layers.backbones import parameter_groups
from stmi_layers.training import Batch, Facts, Outputs, joined


def build(settings: Settings, facts: Facts, tower: Tower, kind: "type[STMI] | None" = None) -> "STMI":
    """Build the model of the settings, with random weights; it reads captions if the training split has captions.

    Args:
        settings: settings of the method.
        facts: facts of the training split.
        tower: settings of the image tower.
        kind: a class derived from `STMI` to build instead.
    """
    backbone = build_tower(tower, facts)
    text_encoder = None
    if facts.words and settings.text_encoder == "words":
        text_encoder = CaptionEncoder(facts.words, backbone.dim, num_heads=settings.num_heads)
    elif facts.words:
        options = {"overflow": settings.caption_overflow, "project": settings.text_projection}
        text_encoder = build_clip_text(tower.architecture, backbone.dim, **options)
    return (kind or STMI)(
        backbone,
        len(facts.modalities),
        text_encoder=text_encoder,
        reallocation=settings.reallocation,
        fusion=settings.fusion,
        num_tokens=settings.num_tokens,
        num_heads=settings.num_heads,
        threshold=settings.threshold,
        similarity=settings.similarity,
        common=settings.common,
        descriptor=settings.descriptor,
    )


class STMI(nn.Module):
    """STMI, or a variant of Tables 3 and 4, around a tower: a `ReIDModel`.

    Args:
        backbone: an image tower, a `Backbone`, which includes SFM.
        num_modalities: number of images per sample.
        text_encoder: encoder of the text prior T, or None for a model without captions.
        reallocation: whether STR and all modules after it are used; False is the baseline that retrieves with G.
        fusion: interaction of the semantic tokens: the hypergraph (CHI), self-attention, an MLP over the tokens, no
            interaction ("none"), or none and a readout that stays within each modality ("concatenation").
        num_tokens: K, the semantic tokens per modality without the text prior.
        num_heads: heads of the cross- and self-attentions; divides the width of the tower.
        threshold: least cosine, or greatest distance, at which two semantic tokens share a hyperedge.
        similarity: "cosine" or "euclidean".
        common: also return C, the mean over the modalities of the parts of U, or of G without STR.
        descriptor: headline descriptor; "auto" is U, or G in a model without U.

    Raises:
        ValueError: when `descriptor` names a feature that the model lacks.
    """

    def __init__(
        self,
        backbone: Any,
        num_modalities: int,
        *,
        text_encoder: Any = None,
        reallocation: bool = True,
        fusion: Fusion = "hypergraph",
        num_tokens: int = 4,
        num_heads: int = 4,
        threshold: float = 0.5,
        similarity: Literal["cosine", "euclidean"] = "cosine",
        common: bool = False,
        descriptor: str = "auto",
    ) -> None:
        super().__init__()
        dim, nodes = backbone.dim, num_modalities * (num_tokens + (text_encoder is not None))
        self.backbone, self.cross_modal, self.common = backbone, fusion != "concatenation", common
        self.reallocations = self.interaction = self.readout = None
        if reallocation:
            interaction = build_interaction(fusion, dim, nodes, num_heads, threshold, similarity)
            # Equal initial weights: unrelated queries and projections would give the tokens of the modalities unrelated
            # directions, and no hyperedge would ever join two modalities.
            first = SemanticTokenReallocation(dim, num_tokens, num_heads=num_heads)
            self.reallocations = nn.ModuleList(copy.deepcopy(first) for _ in range(num_modalities))
            self.interaction = interaction
            self.readout = GlobalCrossAttention(dim, num_heads=num_heads)
        self.text_encoder = text_encoder
        width = num_modalities * dim
        self.widths = (
            {"G": width} | ({"U": width} if reallocation else {}) | ({"T": dim} if text_encoder is not None else {})
        )
        self.widths |= {"C": dim} if common else {}
        self.headline = headline(descriptor, self.widths)
        self._seen: tuple[Tensor, Tensor | None] | None = None  # tokens of a batch, for `watch`
        self._look = True

    def forward(self, batch: Batch) -> Outputs:
        """Return G, U and T of a batch; the parts of G and U of an absent modality are 0."""
        present, prior, fused = batch.present, None, None  # (b m) or None
        patches, globals_ = tower_tokens(self.backbone, batch)  # (b m n d), (b m d)
        if self.text_encoder is not None:
            if batch.texts is None:
                raise ValueError(
                    "batch must hold texts, made by encode, because the model reads captions; received None"
                )
            prior = self.text_encoder(batch.texts, batch.has_text)  # (b d)
        if self.reallocations is not None:
            tokens = self.semantic_tokens(patches, prior)  # (b m k d), the prior's last
            self._remember(tokens, present)
            if self.interaction is not None:
                tokens = self.interaction(tokens, present)  # (b m k d)
            fused = self.read(globals_, tokens, present)  # (b m d)
        features = {"G": globals_.flatten(1)}  # (b m*d)
        if fused is not None:
            fused = fused if present is None else torch.where(present[..., None], fused, 0.0)
            features["U"] = fused.flatten(1)  # (b m*d)
        if self.common:
            features["C"] = mean_of_present(globals_ if fused is None else fused, present)  # (b d)
        if prior is None:
            return Outputs(features)
        # All rows without caption have the same vector, which cannot tell identities apart.
        return Outputs(features | {"T": prior}, rows={"T": batch.has_text})

    def semantic_tokens(self, patches: Tensor, prior: Tensor | None) -> Tensor:
        """Apply STR, with separate queries for each modality (eq. 10): (batch modalities semantic dim)."""
        assert self.reallocations is not None
        per_modality = zip(self.reallocations, patches.unbind(1), strict=True)
        return torch.stack([reallocate(of_one, prior) for reallocate, of_one in per_modality], dim=1)

    def read(self, globals_: Tensor, tokens: Tensor, present: Tensor | None) -> Tensor:
        """Let global tokens read the semantic tokens of all modalities, or only of their own modality (eq. 17-18)."""
        assert self.readout is not None
        batch, _, semantic, _ = tokens.shape
        if not self.cross_modal:
            own = self.readout(rearrange(globals_, "b m d -> (b m) 1 d"), tokens.flatten(0, 1))  # (b*m 1 d)
            return rearrange(own, "(b m) 1 d -> b m d", b=batch)
        keep = None if present is None else repeat(present, "b m -> b (m s)", s=semantic)
        return self.readout(globals_, tokens.flatten(1, 2), keep)

    def encode(self, captions: Sequence[tuple[str, ...]]) -> Tensor | None:
        """Encode captions, joined over modalities; None for a model without text encoder."""
        return None if self.text_encoder is None else self.text_encoder.encode([joined(each) for each in captions])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return new modules, the tower, and the strengths of SFM: two numbers per block, which need larger steps."""
        groups = parameter_groups(self, backbone=trunk_of(self.backbone))
        return {"new": groups["rest"], "backbone": groups["backbone"], "strengths": groups["strengths"]}

    def watch(self) -> dict[str, float]:
        """Return alpha and beta of every block, and statistics of CHI in the first batch since the mode changed.

        A hypergraph that joins nothing, or everything, has no effect.
        """
        strengths = watch_strengths(self.backbone)
        if self._seen is None or not isinstance(self.interaction, CrossModalHypergraph):
            return strengths
        tokens, present = self._seen
        statistics = incidence_statistics(self.interaction.incidence(tokens, present), tokens.shape[1])
        names = ("mean_edge_size", "isolated_share", "cross_modal_share")
        means = {f"hypergraph/{name}": value.mean().item() for name, value in zip(names, statistics, strict=True)}
        return strengths | means | {"hypergraph/nodes": float(self.interaction.num_nodes)}

    def train(self, mode: bool = True) -> "STMI":
        """Set the mode; `watch` then reports on the next batch."""
        self._look = True
        return super().train(mode)

    def _remember(self, tokens: Tensor, present: Tensor | None) -> None:
        if self._look and not torch.compiler.is_compiling():
            self._seen, self._look = (tokens.detach(), present), False


def mean_of_present(tokens: Tensor, present: Tensor | None) -> Tensor:
    """Average tokens (batch modalities dim) over present modalities; tokens of absent modalities must be 0."""
    return tokens.mean(dim=1) if present is None else tokens.sum(dim=1) / present.sum(dim=1, keepdim=True).clamp(min=1)


def build_interaction(
    fusion: Fusion, dim: int, nodes: int, num_heads: int, threshold: float, similarity: Literal["cosine", "euclidean"]
) -> nn.Module | None:
    """Build CHI, or its replacement in Table 4; None leaves the tokens separate."""
    if fusion == "hypergraph":
        return CrossModalHypergraph(dim, nodes, threshold=threshold, similarity=similarity)
    if fusion == "self-attention":
        return SelfAttentionInteraction(dim, num_heads)
    return TokenMixing(nodes) if fusion == "mlp" else None


def headline(descriptor: str, widths: dict[str, int]) -> str:
    """Return the headline descriptor: U if the model has U, else G, unless `descriptor` chooses another."""
    if descriptor == "auto":
        return "U" if "U" in widths else "G"
    if (descriptor == "all" and len(widths) > 1) or set(descriptor.split("+")) <= widths.keys():
        return descriptor
    raise ValueError(
        f"descriptor must be one the model has, {sorted(widths)} or several of them joined; received {descriptor!r}"
    )
