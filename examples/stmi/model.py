"""STMI: backbone with SFM, then STR, CHI and the global readout, each a module that can be replaced or left out."""

from typing import Literal, NamedTuple

import torch
from einops import rearrange, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from examples.stmi.interactions import SelfAttentionInteraction, TokenMixing
from examples.stmi.text import CaptionEncoder
from examples.stmi.vit import VisionTransformer
from stmi_layers import CrossModalHypergraph, GlobalCrossAttention, ReIDLoss, SemanticTokenReallocation

Fusion = Literal["hypergraph", "self-attention", "mlp", "none", "concatenation"]


class Features(NamedTuple):
    """What STMI supervises and retrieves with; U is missing without STR, T without captions."""

    G: Float[Tensor, "batch width"]
    U: Float[Tensor, "batch width"] | None
    T: Float[Tensor, "batch dim"] | None


class STMI(nn.Module):
    """The full model (eq. 1-18). With only a backbone it is the baseline of the paper's Table 3.

    Args:
        backbone: maps images and masks to patch tokens and a global token per modality, as `VisionTransformer` does.
        reallocations: one `SemanticTokenReallocation` per modality (its queries are modality-specific, eq. 10), or None.
        interaction: exchanges information among the semantic tokens of all modalities, or None to leave them apart.
        readout: lets the global tokens read the semantic tokens (eq. 18), or None.
        cross_modal_readout: whether a global token reads the tokens of all modalities, or only those of its own.
        text_encoder: maps token ids of captions to the text prior, or None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        reallocations: nn.ModuleList | None = None,
        interaction: nn.Module | None = None,
        readout: nn.Module | None = None,
        cross_modal_readout: bool = True,
        text_encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if (reallocations is None) != (readout is None) or (interaction is not None and reallocations is None):
            raise ValueError("reallocations and readout come together, and interaction needs both")
        self.backbone, self.reallocations, self.interaction = backbone, reallocations, interaction
        self.readout, self.cross_modal_readout, self.text_encoder = readout, cross_modal_readout, text_encoder

    def forward(
        self,
        images: Float[Tensor, "batch modalities 3 height width"],
        masks: Bool[Tensor, "batch modalities height width"] | None = None,
        present: Bool[Tensor, "batch modalities"] | None = None,
        caption_tokens: Int[Tensor, "batch words"] | None = None,
    ) -> Features:
        """Features of a batch; `present` is False where a modality is missing, whose part of G and U is then zero.

        Leave `present` out when all are there: choosing among the images makes the host wait for the device.
        """
        patches, globals_ = self.tokens(images, masks, present)
        prior = None
        if self.text_encoder is not None:
            if caption_tokens is None:
                raise ValueError("the model has a text encoder: caption_tokens must be given")
            prior = self.text_encoder(caption_tokens)
        fused = None if self.reallocations is None else self.fuse(patches, globals_, present, prior)
        return Features(_flatten(globals_, present), None if fused is None else _flatten(fused, present), prior)

    def tokens(self, images: Tensor, masks: Tensor | None, present: Tensor | None) -> tuple[Tensor, Tensor]:
        """The backbone on the modalities that are there: a missing one enters no batch statistic and costs nothing."""
        if present is None:
            return self.backbone(images, masks)
        patches, globals_ = self.backbone(images[present][:, None], None if masks is None else masks[present][:, None])
        shape = present.shape
        return (
            patches.new_zeros(*shape, *patches.shape[2:]).masked_scatter(present[..., None, None], patches),
            globals_.new_zeros(*shape, *globals_.shape[2:]).masked_scatter(present[..., None], globals_),
        )

    def feature_widths(self, num_modalities: int) -> dict[str, int]:
        """Width of each feature the model returns, by name."""
        widths = {"G": num_modalities * self.backbone.dim}
        if self.readout is not None:
            widths["U"] = widths["G"]
        if self.text_encoder is not None:
            widths["T"] = self.backbone.dim
        return widths

    def semantic_tokens(self, patches: Tensor, present: Tensor | None, prior: Tensor | None) -> Tensor:
        """STR, then CHI: a few tokens per modality that know of the other modalities."""
        per_modality = zip(self.reallocations, patches.unbind(1), strict=True)
        tokens = torch.stack([reallocate(of_one, prior) for reallocate, of_one in per_modality], dim=1)
        return tokens if self.interaction is None else self.interaction(tokens, present)

    def fuse(self, patches: Tensor, globals_: Tensor, present: Tensor | None, prior: Tensor | None) -> Tensor:
        """U: the global tokens after reading the semantic tokens."""
        tokens = self.semantic_tokens(patches, present, prior)
        batch, modalities, semantic, _ = tokens.shape
        if not self.cross_modal_readout:
            own = self.readout(rearrange(globals_, "b m d -> (b m) 1 d"), tokens.flatten(0, 1))
            return rearrange(own, "(b m) 1 d -> b m d", b=batch, m=modalities)
        keep = None if present is None else repeat(present, "b m -> b (m s)", s=semantic)
        return self.readout(globals_, tokens.flatten(1, 2), keep)


def _flatten(globals_: Tensor, present: Tensor | None) -> Tensor:
    if present is not None:
        globals_ = torch.where(present[..., None], globals_, 0.0)
    return globals_.flatten(1)


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

    def forward(self, features: Features, labels: Tensor) -> Tensor:
        return torch.stack([loss(getattr(features, name), labels) for name, loss in self.terms.items()]).sum()


def build_stmi(
    backbone: VisionTransformer,
    num_modalities: int,
    *,
    reallocation: bool = True,
    fusion: Fusion = "hypergraph",
    num_tokens: int = 4,
    num_heads: int = 4,
    threshold: float = 0.5,
    text_encoder: CaptionEncoder | None = None,
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
        threshold: cosine similarity from which on two semantic tokens share a hyperedge.
        text_encoder: of the text prior, or None for a model without captions.
    """
    if not reallocation:
        return STMI(backbone, text_encoder=text_encoder)
    dim = backbone.dim
    nodes = num_modalities * (num_tokens + (text_encoder is not None))
    interaction: nn.Module | None = None
    if fusion == "hypergraph":
        interaction = CrossModalHypergraph(dim, nodes, threshold=threshold)
    elif fusion == "self-attention":
        interaction = SelfAttentionInteraction(dim, num_heads)
    elif fusion == "mlp":
        interaction = TokenMixing(nodes)
    return STMI(
        backbone,
        reallocations=nn.ModuleList(
            SemanticTokenReallocation(dim, num_tokens, num_heads=num_heads) for _ in range(num_modalities)
        ),
        interaction=interaction,
        readout=GlobalCrossAttention(dim, num_heads=num_heads),
        cross_modal_readout=fusion != "concatenation",
        text_encoder=text_encoder,
    )
