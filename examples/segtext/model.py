"""Retrieval by image, caption and mask, in our reading of FusionSegReID / PS-ReID, read from top to bottom.

Adapters, one per role, map the tokens of a tower and the captions into one space. F is an image read at several scales
under a mask, T is a caption, and a linear layer predicts the mask from the patches. Training aligns images and captions
of an identity. The identity token of a query, image or caption, has to find the token of its target, which is tied to
the patches under the mask. The mask is learned, too. F and T have the identity and triplet losses of `Objective` in
`stmi_layers.training`.

The formulas of the paper (<https://arxiv.org/abs/2503.21595>) are not public: ours are a reading of its summary. Its
language model and its mask decoder are left out, and queries and targets are images of one kind.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor, nn

from examples.segtext.settings import Settings
from examples.towers.clip_text import build_clip_text
from examples.towers.text import CaptionEncoder
from examples.towers.tower import Tower, build_tower, tower_tokens, trunk_of, watch_strengths
from stmi_layers import (
    AsymmetricAdapter,
    ImageTextAlignment,
    SegmentationGuidedPooling,
    mask_coupling_loss,
    mask_loss,
    token_identity_loss,
)
from stmi_layers.backbones import parameter_groups
from stmi_layers.training import Batch, Facts, Outputs, joined, whole_batch, whole_mean


def build(settings: Settings, facts: Facts, tower: Tower) -> "SegText":
    """Build the model of the settings, with random weights; it reads captions if the training split has captions."""
    backbone, text_encoder = build_tower(tower, facts), None
    if facts.words and settings.text_encoder == "words":
        text_encoder = CaptionEncoder(facts.words, backbone.dim, num_heads=settings.num_heads)
    elif facts.words:
        text_encoder = build_clip_text(tower.architecture, backbone.dim)
    options = {"num_heads": settings.num_heads, "beta": settings.beta}
    scales = settings.scales or tuple(side for side in (1, 2, 4) if not any(whole % side for whole in backbone.grid))
    pooling = SegmentationGuidedPooling(backbone.dim, backbone.grid, scales=scales, **options)
    return SegText(backbone, pooling, text_encoder, guide=settings.guide, temperature=settings.temperature)


class SegText(nn.Module):
    """Retrieval by image, caption and mask around a tower: a `ReIDModel`.

    Args:
        backbone: an image tower, a `Backbone`. With SFM masks steer it, and predicting the mask is trivial.
        pooling: layer that reads an image under its mask.
        text_encoder: encoder of the captions, or None for a model without captions.
        guide: mask under which an image is read: "given", "predicted" or "none".
        temperature: temperature of the identity tokens, and initial temperature of the alignment.
    """

    def __init__(
        self,
        backbone: Any,
        pooling: SegmentationGuidedPooling,
        text_encoder: Any,
        *,
        guide: Literal["given", "predicted", "none"] = "given",
        temperature: float = 0.07,
    ) -> None:
        super().__init__()
        dim = backbone.dim
        self.backbone, self.pooling, self.text_encoder = backbone, pooling, text_encoder
        self.guide, self.temperature = guide, temperature
        self.of_queries, self.of_targets = AsymmetricAdapter(dim, dim), AsymmetricAdapter(dim, dim)
        self.of_captions = self.alignment = None
        if text_encoder is not None:
            self.of_captions, self.alignment = AsymmetricAdapter(dim, dim), ImageTextAlignment(temperature)
        self.decoder = nn.Linear(dim, 1)
        self.widths = {"F": dim} if text_encoder is None else {"F": dim, "T": dim}
        self.headline = "F"

    def forward(self, batch: Batch) -> Outputs:
        """Return F and T of a batch (T is 0 without caption), and in training the terms."""
        patches, class_tokens = tower_tokens(self.backbone, batch)  # (b m n d), (b m d)
        there = batch.present
        if there is None:
            there = torch.ones_like(class_tokens[..., 0], dtype=torch.bool)  # (b m)
        shares, logits = self.shares(batch, patches), self.decoder(patches)[..., 0]  # (b m n) or None, (b m n)
        guide = {"given": shares, "predicted": logits.sigmoid(), "none": None}[self.guide]
        targets = self.of_targets(patches.flatten(1, 2)).view_as(patches)  # (b m n d)
        read = self.pooling(self.of_targets(class_tokens), targets, guide, batch.present)  # (b m d)
        image, caption = mean_of_present(read, there), self.caption(batch)  # (b d), (b d) or None
        terms = {}
        if self.training:
            query = mean_of_present(self.of_queries(class_tokens), there)  # (b d)
            terms = self.identity_terms(image, query, caption, there, batch)
            terms |= self.mask_terms(image, targets, logits, shares, there)
        if caption is None:
            return Outputs({"F": image}, terms)
        return Outputs({"F": image, "T": caption}, terms, rows={"T": batch.has_text})

    def shares(self, batch: Batch, patches: Tensor) -> Tensor | None:
        """Return the share of each patch that the given mask covers, (batch modalities patches)."""
        if batch.masks is None:
            return None
        rows, columns = self.backbone.grid
        masks = batch.masks.to(patches.dtype)
        return reduce(masks, "b m (r y) (c x) -> b m (r c)", "mean", r=rows, c=columns)

    def caption(self, batch: Batch) -> Tensor | None:
        """Return features of the captions (batch dim), 0 if missing; None for a model without captions."""
        if self.text_encoder is None or self.of_captions is None:
            return None
        if batch.texts is None:
            raise ValueError("batch must hold texts, made by encode, because the model reads captions; received None")
        said = batch.has_text[:, None]  # (b 1)
        vectors = torch.where(said, self.text_encoder(batch.texts, batch.has_text), 0.0)  # (b d)
        return torch.where(said, self.of_captions(vectors[:, None])[:, 0], 0.0)

    def identity_terms(
        self, image: Tensor, query: Tensor, caption: Tensor | None, there: Tensor, batch: Batch
    ) -> dict[str, Tensor]:
        """Align images with captions, and queries with targets, of all processes: all pairs of an identity match."""
        labels, target = whole_batch(batch.labels), whole_batch(image)
        queries, known = query[:, None], there.any(dim=1, keepdim=True)  # (b k d), (b k): image, and caption
        terms = {}
        if caption is not None and self.alignment is not None:
            both = known[:, 0] & batch.has_text
            terms["alignment"] = self.alignment(target, whole_batch(caption), labels, whole_batch(both))
            queries = torch.stack([query, caption], dim=1)
            known = torch.stack([known[:, 0], batch.has_text], dim=1)
        targets = repeat(target, "b d -> b k d", k=queries.shape[1])
        options = {"temperature": self.temperature, "present": whole_batch(known)}
        terms["token_identity"] = token_identity_loss(whole_batch(queries), targets, labels, labels, **options)
        return terms

    def mask_terms(
        self, image: Tensor, targets: Tensor, logits: Tensor, shares: Tensor | None, there: Tensor
    ) -> dict[str, Tensor]:
        """Tie F to the patches under the mask, and learn the mask; both terms are 0 for a set without masks."""
        if shares is None:
            nothing = 0 * logits.sum()
            return {"coupling": nothing, "mask": nothing}
        flat, shares = there.flatten(), shares.flatten(0, 1)  # (b*m), (b*m n)
        tokens = repeat(image, "b d -> (b m) 1 d", m=there.shape[1])
        coupling = mask_coupling_loss(tokens, targets.flatten(0, 1), shares, present=flat)
        maps = [rearrange(part, "b (r c) -> b r c", r=self.backbone.grid[0]) for part in (logits.flatten(0, 1), shares)]
        return {
            "coupling": whole_mean(coupling, (flat & (shares.sum(dim=1) > 0)).sum()),
            "mask": whole_mean(mask_loss(maps[0], maps[1], present=flat), flat.sum()),
        }

    def segment(self, batch: Batch) -> Tensor:
        """Predict the probability of foreground, (batch modalities rows columns)."""
        logits = self.decoder(tower_tokens(self.backbone, batch)[0])[..., 0]  # (b m n)
        return rearrange(logits.sigmoid(), "b m (r c) -> b m r c", r=self.backbone.grid[0])

    def encode(self, captions: Sequence[tuple[str, ...]]) -> Tensor | None:
        """Encode captions, joined over modalities; None for a model without text encoder."""
        return None if self.text_encoder is None else self.text_encoder.encode([joined(each) for each in captions])

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return new modules, the tower, its strengths of SFM, and the scalars: temperature and weights of the mask."""
        groups = parameter_groups(self, backbone=trunk_of(self.backbone))
        scalars = [self.pooling.log_beta, *([] if self.alignment is None else self.alignment.parameters())]
        new = [parameter for parameter in groups["rest"] if all(parameter is not scalar for scalar in scalars)]
        return {"new": new, "backbone": groups["backbone"], "strengths": groups["strengths"], "scalars": scalars}

    def watch(self) -> dict[str, float]:
        """Return temperature, weight of the mask (mean over heads), and alpha and beta of SFM."""
        temperature = {} if self.alignment is None else {"temperature": self.alignment.log_temperature.exp().item()}
        weight = self.pooling.log_beta.exp().mean().item()
        return {**temperature, "mask_weight": weight, **watch_strengths(self.backbone)}


def mean_of_present(tokens: Tensor, there: Tensor) -> Tensor:
    """Return the mean of (batch modalities dim) over present modalities, 0 without any."""
    kept = torch.where(there[..., None], tokens, 0.0).sum(dim=1)
    return kept / there.sum(dim=1, keepdim=True).clamp(min=1)
