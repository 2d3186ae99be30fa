"""STMI: backbone with SFM, then STR, CHI and the global readout, each a module that can be replaced or left out."""

import copy
from typing import Literal, NamedTuple, Protocol

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from examples.stmi.ablations import SelfAttentionInteraction, TokenMixing
from stmi_layers import CrossModalHypergraph, GlobalCrossAttention, ReIDLoss, SemanticTokenReallocation

Fusion = Literal["hypergraph", "self-attention", "mlp", "none", "concatenation"]


class Backbone(Protocol):
    """What STMI stands on: patch tokens, row by row of a `grid`, and a global token per modality, of width `dim`.

    One that has an attribute `reads_cameras`, and True in it, is called with the camera of each sample besides.
    """

    dim: int
    grid: tuple[int, int]

    def __call__(self, images: Tensor, masks: Tensor | None, /, *cameras: Tensor) -> tuple[Tensor, Tensor]: ...


class Features(NamedTuple):
    """What STMI supervises and retrieves with; U is missing without STR, T without captions."""

    G: Float[Tensor, "batch width"]
    U: Float[Tensor, "batch width"] | None
    T: Float[Tensor, "batch dim"] | None


class STMI(nn.Module):
    """The full model (eq. 1-18). With only a backbone it is the baseline of the paper's Table 3.

    Args:
        backbone: a module that maps images and masks to patch tokens and a global token per modality.
        fusion: what makes U of them, or None for a model that retrieves with G.
        text_encoder: maps token ids of captions to the text prior, or None.
    """

    def __init__(
        self, backbone: Backbone, *, fusion: "SemanticFusion | None" = None, text_encoder: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.dim = backbone.dim
        self.reads_cameras: bool = getattr(backbone, "reads_cameras", False)
        self.backbone, self.fusion, self.text_encoder = backbone, fusion, text_encoder

    def forward(
        self,
        images: Float[Tensor, "batch modalities 3 height width"],
        masks: Bool[Tensor, "batch modalities height width"] | None = None,
        present: Bool[Tensor, "batch modalities"] | None = None,
        caption_tokens: Int[Tensor, "batch words"] | None = None,
        cameras: Int[Tensor, " batch"] | None = None,
    ) -> Features:
        """Features of a batch; `present` is False where a modality is missing, whose part of G and U is then zero.

        Leave `present` out when all are there: choosing among the images makes the host wait for the device. `cameras`
        are for a backbone that reads them.
        """
        patches, globals_ = self.tokens(images, masks, present, cameras)
        prior = None
        if self.text_encoder is not None:
            if caption_tokens is None:
                raise ValueError("the model has a text encoder: caption_tokens must be given")
            prior = self.text_encoder(caption_tokens)
        fused = None if self.fusion is None else self.fusion(patches, globals_, present, prior)
        return Features(_flatten(globals_, present), None if fused is None else _flatten(fused, present), prior)

    def tokens(
        self, images: Tensor, masks: Tensor | None, present: Tensor | None, cameras: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The backbone on the modalities that are there: a missing one enters no batch statistic and costs nothing."""
        if present is None:
            return self.backbone(images, masks, *([] if cameras is None else [cameras]))
        if not present.any(dim=1).all():
            without = (~present.any(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"present must mark at least one modality per sample; samples {without} have none")
        patches, globals_ = self.backbone(
            images[present][:, None],
            None if masks is None else masks[present][:, None],
            *([] if cameras is None else [cameras[:, None].expand_as(present)[present]]),
        )
        return (
            patches.new_zeros(*present.shape, *patches.shape[2:]).masked_scatter(present[..., None, None], patches),
            globals_.new_zeros(*present.shape, *globals_.shape[2:]).masked_scatter(present[..., None], globals_),
        )

    def feature_widths(self, num_modalities: int) -> dict[str, int]:
        """Width of each feature the model returns, by name."""
        widths = {"G": num_modalities * self.dim}
        if self.fusion is not None:
            widths["U"] = widths["G"]
        if self.text_encoder is not None:
            widths["T"] = self.dim
        return widths


class SemanticFusion(nn.Module):
    """STR, CHI and the readout: from the tokens of all modalities to U (eq. 9-18).

    Args:
        reallocations: one `SemanticTokenReallocation` per modality, since its queries differ (eq. 10).
        interaction: exchanges information among the semantic tokens of all modalities, or None to leave them apart.
        readout: lets the global tokens read the semantic tokens (eq. 18).
        cross_modal: whether a global token reads the tokens of all modalities, or only those of its own.
    """

    def __init__(
        self,
        reallocations: nn.ModuleList,
        interaction: nn.Module | None,
        readout: nn.Module,
        *,
        cross_modal: bool = True,
    ) -> None:
        super().__init__()
        self.reallocations, self.interaction, self.readout = reallocations, interaction, readout
        self.cross_modal = cross_modal

    def forward(
        self,
        patches: Float[Tensor, "batch modalities patches dim"],
        globals_: Float[Tensor, "batch modalities dim"],
        present: Bool[Tensor, "batch modalities"] | None = None,
        prior: Float[Tensor, "batch dim"] | None = None,
    ) -> Float[Tensor, "batch modalities dim"]:
        """U: the global tokens after reading the semantic tokens."""
        tokens = self.semantic_tokens(patches, prior)
        if self.interaction is not None:
            tokens = self.interaction(tokens, present)
        batch, _, semantic, _ = tokens.shape
        if not self.cross_modal:
            own = self.readout(rearrange(globals_, "b m d -> (b m) 1 d"), tokens.flatten(0, 1))
            return rearrange(own, "(b m) 1 d -> b m d", b=batch)
        keep = None if present is None else repeat(present, "b m -> b (m s)", s=semantic)
        return self.readout(globals_, tokens.flatten(1, 2), keep)

    def semantic_tokens(self, patches: Tensor, prior: Tensor | None = None) -> Tensor:
        """STR: a few tokens per modality, (batch modalities semantic dim)."""
        per_modality = zip(self.reallocations, patches.unbind(1), strict=True)
        return torch.stack([reallocate(of_one, prior) for reallocate, of_one in per_modality], dim=1)


def _flatten(globals_: Tensor, present: Tensor | None) -> Tensor:
    if present is not None:
        globals_ = torch.where(present[..., None], globals_, 0.0)
    return globals_.flatten(1)


def _widened(feature: Tensor) -> Tensor:
    """At least float32: under autocast a backbone may return half precision, the heads of the losses hold float32."""
    return feature.to(torch.promote_types(feature.dtype, torch.float32))


class STMILoss(nn.Module):
    """Identity and triplet loss on every feature the model returns (eq. 20).

    Args:
        widths: width of each feature by its name in `Features`; names left out are not supervised.
        num_identities: classes of the training set.
        identity_weight: of the cross-entropy against the triplet loss (eq. 19 has 1; the research code 0.25).
    """

    def __init__(self, widths: dict[str, int], num_identities: int, *, identity_weight: float = 1.0) -> None:
        super().__init__()
        self.terms = nn.ModuleDict(
            {name: ReIDLoss(width, num_identities, identity_weight=identity_weight) for name, width in widths.items()}
        )

    def forward(self, features: Features, labels: Tensor, has_caption: Tensor | None = None) -> Tensor:
        """The sum of all terms; T is supervised in the rows that `has_caption` marks True, by default in all.

        A row without caption has the one vector that says so, and there is nothing to tell identities apart by.
        """
        terms = []
        for name, loss in self.terms.items():
            feature, of_feature = _widened(getattr(features, name)), labels
            if name == "T" and has_caption is not None:
                feature, of_feature = feature[has_caption], labels[has_caption]
                if len(feature) < 2:  # too few for a batch norm
                    terms.append(0 * feature.sum())
                    continue
            terms.append(loss(feature, of_feature))
        return torch.stack(terms).sum()


def build_stmi(
    backbone: Backbone,
    num_modalities: int,
    *,
    reallocation: bool = True,
    fusion: Fusion = "hypergraph",
    num_tokens: int = 4,
    num_heads: int = 4,
    threshold: float = 0.5,
    similarity: str = "cosine",
    text_encoder: nn.Module | None = None,
) -> STMI:
    """Compose STMI, or a variant of Tables 3 and 4, around a backbone.

    Args:
        backbone: SFM is its part: give it masks or not.
        num_modalities: images per sample.
        reallocation: STR, and with it everything behind it; False is the baseline that retrieves with G.
        fusion: what lets the semantic tokens interact: the hypergraph (CHI), self-attention, an MLP over the tokens,
            nothing ("none"), or nothing with a readout that stays within each modality ("concatenation").
        num_tokens: K, the semantic tokens per modality without the text prior.
        num_heads: heads of the cross- and self-attentions.
        threshold: least cosine, or greatest distance, at which two semantic tokens share a hyperedge.
        similarity: "cosine" or "euclidean".
        text_encoder: of the text prior, or None for a model without captions.
    """
    if not reallocation:
        return STMI(backbone, text_encoder=text_encoder)
    dim = backbone.dim
    nodes = num_modalities * (num_tokens + (text_encoder is not None))
    interaction: nn.Module | None = None
    if fusion == "hypergraph":
        interaction = CrossModalHypergraph(dim, nodes, threshold=threshold, similarity=similarity)
    elif fusion == "self-attention":
        interaction = SelfAttentionInteraction(dim, num_heads)
    elif fusion == "mlp":
        interaction = TokenMixing(nodes)
    # Equal at the start: unrelated queries and projections would put the tokens of the modalities in unrelated
    # directions, and no hyperedge would ever reach from one modality to another.
    first = SemanticTokenReallocation(dim, num_tokens, num_heads=num_heads)
    reallocations = nn.ModuleList(copy.deepcopy(first) for _ in range(num_modalities))
    readout = GlobalCrossAttention(dim, num_heads=num_heads)
    semantic_fusion = SemanticFusion(reallocations, interaction, readout, cross_modal=fusion != "concatenation")
    return STMI(backbone, fusion=semantic_fusion, text_encoder=text_encoder)
